"""Tables of text files and Parquet, with values as they are written."""

import codecs
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features


# Endings of the tables that are read, with how values are separated.
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (*SEPARATORS, ".jsonl", ".ndjson", ".parquet")

# Tables of what a model predicts; Flickr30k calls its captions so as well.
_OUTPUTS = re.compile(r"submission|prediction|result|(?<![a-z])preds?(?![a-z])", re.IGNORECASE)
_OF_CAPTIONS = re.compile(r"(?<![a-z])(caption|comment)", re.IGNORECASE)
# What pandas and NumPy write for a missing value.
_MISSING = ["nan", "NaN"]
# The usual ones come first: of those that a heading has equally often, the first is taken.
VALUE_SEPARATORS = (",", ";", "\t", "|")
# Of a heading, so many characters are read.
_LONGEST = 4096
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
            table = pq.read_table(path, columns=[field.name for field in fields])
            rows = table.to_pandas()
            features = Features.from_arrow_schema(pq.read_schema(path))
            for name in rows:
                # Lists, as in JSON: of arrays, pandas can neither tell which are missing nor which are equal.
                if name in table.column_names and pa.types.is_nested(table.schema.field(name).type):
                    rows[name] = pd.Series(table.column(name).to_pylist(), index=rows.index, dtype=object)
                if isinstance(kind := features[name], ClassLabel):
                    rows[name] = rows[name].map(dict(enumerate(kind.names)))
            # What was an index in pandas is a column.
            return rows if rows.index.names == [None] else rows.reset_index()
        if ending in (".jsonl", ".ndjson"):
            # pandas would take some strings for dates and numbers.
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            records = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(record, dict) for record in records):
                raise ValueError('a line is not a JSON object such as {"file_name": ..., "label": ...}')
            return pd.DataFrame(records).apply(of_one_type)
        own = _dialect(path, ending)
        with warnings.catch_warnings():
            # Of rows that are longer than the heading, pandas would leave out values.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            written = pd.read_csv(path, **{**own, **settings}, dtype=str, keep_default_na=False)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the table {str(path)!r} is not in UTF-8: byte {error.start} is {error.object[error.start]:#x}. Save it "
            f"as such, for example with: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.csv"
        ) from error
    except pd.errors.ParserWarning as error:
        raise ValueError(
            f"the table {str(path)!r} has rows with more values than its heading; quote those that contain commas"
        ) from error
    except (ValueError, OSError) as error:
        # Errors of pandas' parsers and of decoding are of ValueError.
        raise ValueError(f"the table {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    return _without_row_numbers(written).apply(with_numbers)


def _dialect(path: Path, ending: str) -> dict[str, Any]:
    """How a text file is written, as settings of `pandas.read_csv`."""
    with path.open("rb") as start:
        # Excel writes this as "Unicode text".
        encoding = "utf-16" if start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with path.open(encoding=encoding, errors="replace") as file:
        heading = file.readline()
    settings = {"encoding": encoding, "skipinitialspace": True, "index_col": False}
    # Spreadsheets write semicolons where a comma is a decimal point, and may say so in the first line.
    if said := re.fullmatch(r"sep=(.)\s*", heading):
        return {**settings, "sep": said[1], "skiprows": 1}
    names = re.sub(r'"[^"]*"', "", heading)
    own = SEPARATORS.get(ending, ",")
    return {**settings, "sep": own if own in names else max(VALUE_SEPARATORS, key=names.count)}


def is_prediction(path: str | Path) -> bool:
    """Whether `starft predict` has written a table, by its columns."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".parquet":
            names = pq.read_schema(path).names
        elif path.suffix.lower() in TABLES:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                # Of JSON lines the first one has the names as well.
                names = re.findall(r"\w+", file.readline(_LONGEST))
        else:
            return False
    except (pa.ArrowException, OSError):
        # Reading it says what is wrong.
        return False
    return bool(names) and names[0] in ("file", "row") and {"prediction", "confidence"} <= {*names}


def is_output(path: str | Path) -> bool:
    """Whether a table, by its name and its heading, is what a model predicts."""
    if is_prediction(path):
        return True
    if _OUTPUTS.search(Path(path).stem) is None:
        return False
    if Path(path).suffix.lower() not in SEPARATORS:
        return True
    with open(path, encoding="utf-8", errors="replace") as file:
        return _OF_CAPTIONS.search(file.readline()) is None


def of_one_type(column: pd.Series) -> pd.Series:
    """A column as it is, or as strings if its values have several types."""
    try:
        pa.array(column, from_pandas=True)
    except pa.ArrowException:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in column.dropna()]
        return pd.Series(texts, index=column.dropna().index, dtype=object).reindex(column.index, fill_value=None)
    return column


def _without_row_numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns with names, stripped; and those without one that are neither empty nor an index of the rows."""
    names = [str(name).strip() for name in rows]
    rows = rows.set_axis(names, axis="columns")
    unnamed = [name for name in names if name.startswith("Unnamed: ")]
    numbers = [name for name in unnamed if rows[name].str.fullmatch(r"\d*").all()]
    return rows.drop(columns=[name for name in numbers if rows[name].is_unique or (rows[name] == "").all()])


def holds_images(path: Path) -> bool:
    """Whether a file is a Parquet table with a column of bytes, which may be images."""
    try:
        return path.suffix.lower() == ".parquet" and any(_holds_bytes(field.type) for field in pq.read_schema(path))
    except (pa.ArrowException, OSError):
        # Reading it says what is wrong.
        return False


def _holds_bytes(kind: pa.DataType) -> bool:
    return kind in _BYTES or (pa.types.is_struct(kind) and any(_holds_bytes(field.type) for field in kind))


def with_numbers(column: pd.Series) -> pd.Series:
    """A column of strings as numbers or booleans, if all values are written as such; empty values are None."""
    column = column.map(str.strip).replace(_MISSING, "")
    filled = column[column != ""]
    if len(filled) and filled.str.fullmatch("(?i)true|false").all():
        return column.str.lower().map({"true": True, "false": False}).astype("boolean")
    for pattern, kind in ((_WHOLE, "Int64"), (_NUMBER, "Float64")):
        if len(filled) and filled.str.fullmatch(pattern).all():
            # Of these types, empty values are missing rather than NaN.
            return pd.to_numeric(column.where(column != "", None)).astype(kind)
    return column.astype(object).where(column != "", None)
