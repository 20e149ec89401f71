"""Text files that list images, one per line, alone, with labels or with captions: "train.txt", "captions.txt"."""

import posixpath
import re
from collections.abc import Sequence

import pandas as pd

from starft_hf.data.image_formats import is_image
from starft_hf.data.layouts.split_names import names_a_split
from starft_hf.data.layouts.tables import VALUE_SEPARATORS, read_table, with_numbers


ENDING = ".txt"
# The columns of such a list.
PATH, LABEL, CAPTION = "file_name", "label", "caption"

# Others are notes, or the boxes of one image.
_NAMES = re.compile(r"trainval|label|annot|list|caption|token", re.IGNORECASE)
_LONGEST = 4096
# How Flickr8k and Flickr30k number the captions of an image.
_OF_IMAGE = re.compile(r"(?<=\.jpg)#\d+$", re.IGNORECASE)


def is_list(file: str) -> bool:
    """Whether the name of a text file is one of a list: it is that of a split, or says so."""
    stem, ending = posixpath.splitext(posixpath.basename(file))
    return ending.lower() == ENDING and (names_a_split(stem) or _NAMES.search(stem) is not None)


def read_list(path: str) -> pd.DataFrame:
    """The paths in "file_name", and the rest of the lines in "label" if it is one value, else in "column 2" and so on.

    Of a table with a heading the columns are its own, and "caption" is what follows numbered paths as in 1.jpg#0.

    Raises:
        ValueError: if it is not text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path!r} cannot be read: {error}") from error
    if _has_heading(lines):
        return read_table(path)
    rows = [_parts(line) for line in lines if len(line) < _LONGEST]
    width = {len(row) for row in rows}
    if len(width) > 1:
        # Labels of several words.
        rows = [[row[0], " ".join(row[1:])] for row in rows]
    columns = [PATH, LABEL] if len(rows[0] if rows else ()) == 2 else [PATH, *map("column {}".format, range(2, 100))]
    table = pd.DataFrame(rows, dtype=object)
    table.columns = pd.Index(columns[: len(table.columns)])
    table = pd.concat([table.iloc[:, :1], table.iloc[:, 1:].apply(with_numbers)], axis=1)
    if LABEL in table and table[PATH].map(_OF_IMAGE.search).notna().all():
        plain = table[PATH].map(lambda path: _OF_IMAGE.sub("", path))
        return table.assign(**{PATH: plain}).rename(columns={LABEL: CAPTION})
    words = [name for name in table.columns[1:] if not pd.api.types.is_numeric_dtype(table[name])]
    # The only words beside numbers, such as those of boxes.
    return table.rename(columns={words[0]: LABEL}) if len(words) == 1 else table


def _has_heading(lines: Sequence[str]) -> bool:
    """Whether the first line names the columns of a table, in the second one of which there is an image."""
    for separator in VALUE_SEPARATORS:
        heading, first, *_ = ([part.strip(' "') for part in line.split(separator)] for line in (*lines[:2], "", ""))
        if len(heading) > 1 and not any(map(is_image, heading)) and any(map(is_image, first)):
            return len(first) >= len(heading)
    return False


def _parts(line: str) -> list[str]:
    """A path, which may contain spaces, and the values that follow it."""
    if "\t" in line:
        return [part.strip() for part in line.split("\t")]
    for found in re.finditer(r"\.\w{2,5}(?=[\s,;]|$)", line):
        path, rest = line[: found.end()], line[found.end() :].strip(" ,;")
        if is_image(path):
            return [path, *(re.split(r"[\s,;]+", rest) if rest else ())]
    return line.split()
