"""Tables of text files and Parquet, with values as they are written."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features


# Endings of the tables that are read, with how values are separated.
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".jsonl", ".ndjson", ".parquet")

_BYTES = (pa.binary(), pa.large_binary())
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
            # Images that a table holds itself may be large.
            fields = [field for field in pq.read_schema(path) if not _holds_bytes(field.type)]
            rows = pd.read_parquet(path, columns=[field.name for field in fields])
            features = Features.from_arrow_schema(pq.read_schema(path))
            for name in rows:
                if isinstance(kind := features[name], ClassLabel):
                    rows[name] = rows[name].map(dict(enumerate(kind.names)))
            return rows
        if ending in (".jsonl", ".ndjson"):
            # pandas would take some strings for dates and numbers.
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            return pd.DataFrame([json.loads(line) for line in lines if line.strip()])
        own = {"sep": _separator(path, ending), "encoding": "utf-8-sig", "skipinitialspace": True}
        written = pd.read_csv(path, **{**own, **settings}, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        # Errors of pandas' parsers and of decoding are of ValueError.
        raise ValueError(f"the table {str(path)!r} cannot be read: {error}") from error
    return written.apply(_with_numbers)


def _separator(path: Path, ending: str) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        heading = file.readline()
    # Spreadsheets write semicolons where a comma is a decimal point.
    own = SEPARATORS.get(ending, ",")
    return ";" if own not in heading and ";" in heading else own


def _holds_bytes(kind: pa.DataType) -> bool:
    return kind in _BYTES or (pa.types.is_struct(kind) and any(_holds_bytes(field.type) for field in kind))


def _with_numbers(column: pd.Series) -> pd.Series:
    column = column.map(str.strip)
    filled = column[column != ""]
    for pattern, kind in ((_WHOLE, "Int64"), (_NUMBER, "Float64")):
        if len(filled) and filled.str.fullmatch(pattern).all():
            # Of these types, empty values are missing rather than NaN.
            return pd.to_numeric(column.where(column != "", None)).astype(kind)
    return column.astype(object).where(column != "", None)
