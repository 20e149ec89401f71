"""Tables of text files and Parquet, with values as they are written."""

from pathlib import Path
from typing import Any

import pandas as pd


# Endings of the tables that are read, with how values are separated.
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".jsonl", ".ndjson", ".parquet")

_WHOLE = r"-?(?:0|[1-9]\d*)"
_NUMBER = rf"{_WHOLE}(?:\.\d+)?(?:[eE][-+]?\d+)?"


def read_table(path: str | Path, **settings: Any) -> pd.DataFrame:
    """The rows of a table; empty values are None.

    Of text files, columns of numbers are numbers only if they are written as such, so that "007" and the class "NA"
    stay. `settings` are those of `pandas.read_csv`, for text files of other forms.

    Raises:
        ValueError: if it cannot be read.
    """
    path = Path(path)
    ending = path.suffix.lower()
    try:
        if ending == ".parquet":
            return pd.read_parquet(path)
        if ending in (".jsonl", ".ndjson"):
            return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        own = {"sep": SEPARATORS.get(ending, ","), "encoding": "utf-8-sig", "skipinitialspace": True}
        written = pd.read_csv(path, **{**own, **settings}, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        # Errors of pandas' parsers and of decoding are of ValueError.
        raise ValueError(f"the table {str(path)!r} cannot be read: {error}") from error
    return written.apply(_with_numbers)


def _with_numbers(column: pd.Series) -> pd.Series:
    column = column.map(str.strip)
    filled = column[column != ""]
    for pattern, kind in ((_WHOLE, "Int64"), (_NUMBER, "Float64")):
        if len(filled) and filled.str.fullmatch(pattern).all():
            # Of these types, empty values are missing rather than NaN.
            return pd.to_numeric(column.where(column != "", None)).astype(kind)
    return column.astype(object).where(column != "", None)
