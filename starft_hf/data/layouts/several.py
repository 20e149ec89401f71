"""Tables of images that may have several classes: as lists, joined as in "owl|fern", or in several rows."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from starft_hf.data.layouts.table_columns import is_missing
from starft_hf.data.multi_labels import entries_of


def with_lists(rows: pd.DataFrame, label: str, images: Sequence[str], file: str) -> tuple[pd.DataFrame, list[int]]:
    """A row for every image, with a list of its classes, and the places of these rows among the given ones.

    Args:
        rows: of a table, in the order of `images`.
        label: the column with the labels; an empty one is of an image without classes.
        images: the image of every row.
        file: the table, for messages.

    Raises:
        ValueError: if rows of one image differ in anything but the label.
    """
    entries = [[] if is_missing(value) else entries_of(value, label) for value in rows[label]]
    if all(isinstance(entry, str) and entry.isdecimal() for row in entries for entry in row):
        entries = [[int(entry) for entry in row] for row in entries]
    places: dict[str, int] = {}
    found: dict[int, list[Any]] = {}
    others = rows.drop(columns=[label]).astype(str)
    for row, image in enumerate(images):
        first = places.setdefault(image, row)
        if first != row and not others.iloc[first].equals(others.iloc[row]):
            column = next(name for name in others if others[name].iloc[first] != others[name].iloc[row])
            raise ValueError(
                f"{file} lists the image {image} repeatedly, with different values of {column!r}; give every image "
                "one row, with its classes as in owl|fern"
            )
        found.setdefault(first, []).extend(entries[row])
    kept = list(found)
    # Vectors of 0 and 1 have equal entries.
    lists = [found[row] if len(kept) == len(rows) else list(dict.fromkeys(found[row])) for row in kept]
    merged = rows.iloc[kept].reset_index(drop=True)
    return merged.assign(**{label: pd.Series(lists, dtype=object)}), kept
