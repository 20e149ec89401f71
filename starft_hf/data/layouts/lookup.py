"""The files that tables name, found among those of a folder."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from starft_hf.data.layouts.image_index import ImageIndex
from starft_hf.data.layouts.layout import IMAGE
from starft_hf.data.layouts.split_names import in_order, split_of_value
from starft_hf.data.layouts.tables import read_table
from starft_hf.data.layouts.tree import FileTree
from starft_hf.data.source import plain


def find_files(tree: FileTree, *names: str) -> list[str]:
    """The files with one of these names, in any case and folder; those near the top and of the first name first."""
    order = {name.lower(): place for place, name in enumerate(names)}
    found = [file for file in tree.files if posixpath.basename(file).lower() in order]
    return sorted(found, key=lambda file: (file.count("/"), order[posixpath.basename(file).lower()], file))


def read_columns(path: str, columns: Sequence[str], **settings: Any) -> pd.DataFrame | None:
    """These columns of a table of comma-separated values; None if it does not have all of them."""
    if not set(columns) <= set(read_table(path, nrows=0, **settings).columns):
        return None
    return read_table(path, usecols=list(columns), **settings)


def joined(folder: str, name: str) -> str:
    """The path of a file in a folder of a tree, "" for its root, as the tree has it."""
    return posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))


def with_images(
    tree: FileTree, rows: pd.DataFrame, files: Sequence[str], listed_in: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows of a table whose images exist, with their absolute paths, and why the other images were not read.

    Args:
        tree: the folder.
        rows: a row for each of `files`.
        files: the paths of the images below the folder, as the table has them.
        listed_in: what lists them, for messages.

    Raises:
        ValueError: if there are no images, or most of them are missing.
    """
    if not files:
        raise ValueError(f"{listed_in} lists no images of any split; download it again")
    found = ImageIndex(tree).find(files, "")
    missing = [file for file, path in zip(files, found, strict=True) if path is None]
    if 2 * len(missing) > len(found):
        raise ValueError(
            f"{listed_in} lists {len(found)} images, and {len(missing)} of them are missing, such as {missing[0]!r}; "
            f"unpack all of them into {str(tree.root)!r}, or remove the rows of missing ones"
        )
    kept = rows[[path is not None for path in found]].reset_index(drop=True)
    kept.insert(0, IMAGE, [tree.path(path) for path in found if path is not None])
    return kept, dict.fromkeys(missing, f"{listed_in} lists it, but there is no such image")


def decode(table: pd.DataFrame, column: Any, meanings: Mapping[Any, Any], source: str) -> pd.Series:
    """What the values of a column stand for; a ValueError if one is not among `meanings`."""
    for value in table[column].unique():
        if pd.isna(value) or value not in meanings:
            known = ", ".join(str(value) for value in list(meanings)[:4])
            more = ", ..." if len(meanings) > 4 else ""
            held = "an empty value" if pd.isna(value) else repr(plain(value))
            raise ValueError(f"column {str(column)!r} of {source} holds {held}; expected one of {known}{more}")
    return table[column].map(dict(meanings))


def splits_of(values: pd.Series, source: str) -> list[str]:
    """The split of every row of a table, by its column of these; a ValueError if a value is missing."""
    if values.isna().any():
        raise ValueError(f"column {values.name!r} of {source} holds an empty value; expected the split of every row")
    return [split_of_value(value) for value in values]


def by_split(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every split, by the column "split", which they lose; the usual splits first."""
    parts = {str(name): part for name, part in rows.groupby("split", sort=False)}
    return {name: parts[name].drop(columns="split").reset_index(drop=True) for name in in_order(parts)}


def stem(file: str) -> str:
    """The name of a file without its folders and its ending, in lower case."""
    return os.path.splitext(posixpath.basename(file))[0].lower()
