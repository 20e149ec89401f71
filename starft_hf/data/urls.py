"""Columns of URLs, which are refused: images are read from files."""

import posixpath
import re

import pandas as pd


_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_url(value: object) -> bool:
    """Whether a value is a URL rather than a path."""
    return isinstance(value, str) and _URL.match(value) is not None


def holds_urls(file: str, column: str, url: str) -> str:
    """Why a column of URLs is refused."""
    name = posixpath.basename(file)
    return (
        f"column {column!r} of {file!r} holds URLs such as {url!r}: images would be downloaded in every epoch, and "
        "runs could not be repeated once one is gone. Download them first, for example with img2dataset "
        f"--url_list {name} --input_format {name.rpartition('.')[2]} --url_col {column} --output_format webdataset"
    )


def check_no_urls(rows: pd.DataFrame, file: str) -> None:
    """Raise ValueError for the first column of a table that holds URLs."""
    for name in rows:
        filled = rows[name].dropna()
        if len(filled) and is_url(filled.iloc[0]):
            raise ValueError(holds_urls(file, str(name), filled.iloc[0]))
