"""Images that a table lists: metadata.csv as for `imagefolder`, train.csv as on Kaggle, and others of the kind."""

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from starft_hf.data.layouts.class_folders import class_of, folder_of, split_folders, top_folder
from starft_hf.data.layouts.image_index import ImageIndex
from starft_hf.data.layouts.layout import IMAGE, LABEL, Layout
from starft_hf.data.layouts.split_names import TRAIN, split_of, split_of_file, split_of_value
from starft_hf.data.layouts.tables import TABLES, read_table
from starft_hf.data.layouts.tree import FileTree


# Usual names of columns, the likeliest first, in lower case.
_PATHS = (
    *(
        "file_name",
        "filename",
        "image",
        "image_path",
        "img_path",
        "image_file",
        "img_filename",
        "file_path",
        "filepath",
    ),
    *("path", "file", "img", "photo", "image_id", "img_id", "image_name", "id"),
)
_LABELS = (
    *("label", "labels", "class", "class_name", "category", "category_name", "species", "breed", "target", "y"),
    *("class_id", "category_id", "label_id"),
)
_SPLITS = ("split", "subset", "partition")
# Tables of what a model predicts.
_OUTPUTS = re.compile(r"submission|prediction|result", re.IGNORECASE)
# The share of values that must name images for a column to be one of paths.
_ENOUGH = 0.5
_NO_SPLIT = "it is listed without a split"


@dataclass(frozen=True)
class Wanted:
    """The columns that the user has named."""

    image: str = IMAGE
    label: str = LABEL


@dataclass(frozen=True)
class _Table:
    file: str
    rows: pd.DataFrame
    images: tuple[str, ...]
    label: str | None
    class_names: tuple[str, ...] | None
    missing: dict[str, str]

    @property
    def is_metadata(self) -> bool:
        return posixpath.splitext(posixpath.basename(self.file))[0].lower() == "metadata"


def read(tree: FileTree, wanted: Wanted, *, any_column: bool) -> Layout | None:
    """Images by the tables that list them, each named after its split or in the folder of its split, or all in one.

    Tables count if they are called "metadata" or have labels. With `any_column` the only column beside the paths may
    have the labels, whatever its name.
    """
    index = ImageIndex(tree)
    read_ones = (_read(tree, index, file, wanted, any_column) for file in _candidates(tree))
    tables = [table for table in read_ones if table is not None and (table.label is not None or table.is_metadata)]
    if not tables:
        return None
    if any(table.label is not None for table in tables) and not any(table.is_metadata for table in tables):
        tables = [table for table in tables if table.label is not None]
    tables = _with_folders_as_labels(tree, tables)
    names = next((table.class_names for table in tables if table.class_names is not None), None)
    missing = {path: why for table in tables for path, why in table.missing.items()}
    parts: dict[str, list[pd.DataFrame]] = {}
    sources: dict[str, list[str]] = {}
    listed: dict[Any, str] = {}
    for table in tables:
        splits = pd.Series(list(_splits(tree, table)), index=table.rows.index, dtype="object")
        missing |= {table.images[row]: _NO_SPLIT for row in splits.index[splits.isna()]}
        for split, rows in table.rows.groupby(splits, sort=False):
            for image in dict.fromkeys(table.images[row] for row in rows.index):
                if (other := listed.setdefault((split, image), table.file)) != table.file:
                    raise ValueError(
                        f"both {other} and {table.file} list the image {image}; pass the right one of them as the "
                        "dataset, or remove the other"
                    )
            parts.setdefault(str(split), []).append(rows)
            sources.setdefault(str(split), []).append(table.file)
    notes = [
        f"Labels are the column {table.label!r} of {table.file}."
        for table in tables
        if table.label not in (None, LABEL)
    ]
    return Layout(
        "images listed in tables",
        {split: pd.concat(rows, ignore_index=True) for split, rows in parts.items()},
        {split: tuple(dict.fromkeys(files)) for split, files in sources.items()},
        names,
        left_out=missing,
        notes=tuple(dict.fromkeys(notes)),
        is_metadata=any(table.is_metadata for table in tables),
    )


def _candidates(tree: FileTree) -> Iterable[str]:
    for file in tree.files:
        stem, ending = posixpath.splitext(posixpath.basename(file))
        if ending.lower() in TABLES and not _OUTPUTS.search(stem):
            yield file


def _read(tree: FileTree, index: ImageIndex, file: str, wanted: Wanted, any_column: bool) -> _Table | None:
    rows = read_table(tree.path(file))
    column = _path_column(rows, index, file, wanted)
    if column is None:
        return None
    found = index.find(_values(rows[column]), file)
    missing = {
        f"{file}: {value}": "it is listed, but there is no such image"
        for value, image in zip(rows[column], found, strict=True)
        if image is None
    }
    kept = [image is not None for image in found]
    images = tuple(image for image in found if image is not None)
    rows = rows[kept].drop(columns=[column]).reset_index(drop=True)
    label, names = _label_column(rows, wanted, any_column)
    if label is not None and label != wanted.label:
        rows = rows.rename(columns={label: LABEL})
    name = wanted.image if column == wanted.image else IMAGE
    rows = rows.drop(columns=[name], errors="ignore")
    rows.insert(0, name, [tree.path(image) for image in images])
    return _Table(file, rows, images, label, names, missing)


def _path_column(rows: pd.DataFrame, index: ImageIndex, file: str, wanted: Wanted) -> str | None:
    """The column that names images: the one that was asked for, or the one of which most values do."""
    if wanted.image in rows and wanted.image != IMAGE:
        return wanted.image
    shares = {str(name): index.share(_values(rows[name]), file) for name in rows if _may_be_paths(rows[name])}
    most = max(shares.values(), default=0.0)
    if most < _ENOUGH:
        return None
    best = [name for name, share in shares.items() if share == most]
    return min(best, key=lambda name: _PATHS.index(name.lower()) if name.lower() in _PATHS else len(_PATHS))


def _may_be_paths(column: pd.Series) -> bool:
    return bool(pd.api.types.is_integer_dtype(column) or isinstance(_first(column), str))


def _is_plain(column: pd.Series) -> bool:
    return not isinstance(_first(column), (list, dict, float))


def _first(column: pd.Series) -> Any:
    filled = column.dropna()
    return filled.iloc[0] if len(filled) else None


def _values(column: pd.Series) -> list[Any]:
    return [None if pd.isna(value) else value for value in column]


def _label_column(rows: pd.DataFrame, wanted: Wanted, any_column: bool) -> tuple[str | None, tuple[str, ...] | None]:
    """The column with the labels, and the class names if the labels are numbers that another column names."""
    if wanted.label in rows and wanted.label != LABEL:
        return wanted.label, None
    known = {str(name).lower(): str(name) for name in reversed(rows.columns)}
    label = next((known[name] for name in _LABELS if name in known), None)
    if label is None and any_column:
        others = [str(name) for name in rows if str(name).lower() not in _SPLITS]
        if len(others) == 1 and _is_plain(rows[others[0]]) and 1 < rows[others[0]].nunique() < len(rows):
            label = others[0]
    if label is None or not pd.api.types.is_integer_dtype(rows[label]):
        return label, None
    for name in [known[name] for name in known if name.endswith("name") or name in _LABELS]:
        if not isinstance(_first(rows[name]), str):
            continue
        pairs = rows[[label, name]].dropna().drop_duplicates().sort_values(label)
        numbers, words = pairs[label].tolist(), pairs[name].tolist()
        if numbers == list(range(len(set(words)))):
            return label, tuple(words)
    return label, None


def _with_folders_as_labels(tree: FileTree, tables: Sequence[_Table]) -> list[_Table]:
    """Tables with the class folders of their images as labels, where none of them has labels."""
    if any(table.label is not None for table in tables):
        return list(tables)
    images = [image for table in tables for image in table.images]
    splits, top = split_folders(images), top_folder(images)
    labels = {image: class_of(image, splits, top) for image in images}
    flat = all(map(split_of, {label for label in labels.values() if label is not None}))
    if len(set(labels.values())) < 2 or flat:
        return list(tables)
    return [
        replace(
            table,
            rows=table.rows.assign(label=pd.Series([labels[image] for image in table.images], dtype=object)),
            label=LABEL,
        )
        for table in tables
    ]


def _splits(tree: FileTree, table: _Table) -> Sequence[str | None]:
    """The split of every row: by a column, the name or folder of the table, or the folder of the image."""
    columns = {str(name).lower(): name for name in table.rows}
    for name in _SPLITS:
        if name in columns:
            values = _values(table.rows[columns[name]])
            return [None if value is None else split_of_value(value) for value in values]
    own = split_of_file(table.file, default="")
    if own:
        return [own] * len(table.rows)
    top = top_folder(tree.images)
    folders = folder_of([image for image in table.images if image.startswith(top)], top)
    named = {image: split_of(name) for name, images in folders.items() for image in images}
    others = split_folders(tree.images)
    in_folders = {
        image: split for image in table.images for prefix, split in others.items() if image.startswith(prefix)
    }
    return [in_folders.get(image) or named.get(image) or TRAIN for image in table.images]
