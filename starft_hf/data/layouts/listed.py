"""Images that a table lists: metadata.csv as for `imagefolder`, train.csv as on Kaggle, lists, and others."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import pandas as pd

from starft_hf.data.layouts.class_folders import are_classes, class_of, folder_of, split_folders, top_folder
from starft_hf.data.layouts.image_index import ImageIndex
from starft_hf.data.layouts.json_tables import ENDING as JSON
from starft_hf.data.layouts.json_tables import json_tables, read_json
from starft_hf.data.layouts.layout import CAPTION, IMAGE, LABEL, Layout
from starft_hf.data.layouts.lists import ENDING as TEXT
from starft_hf.data.layouts.lists import is_list, read_list
from starft_hf.data.layouts.several import with_lists
from starft_hf.data.layouts.split_names import TRAIN, split_in, split_of, split_of_file
from starft_hf.data.layouts.table_columns import (
    ENOUGH,
    Wanted,
    are_splits_only,
    caption_column,
    is_missing,
    label_column,
    one_hot_labels,
    path_column,
    several_of,
    splits_by_column,
    values,
)
from starft_hf.data.layouts.tables import SEPARATORS, TABLES, is_output, read_table
from starft_hf.data.layouts.tree import FileTree


_NO_SPLIT = "it is listed without a split"
_SEVERAL = "it is of several classes"


@dataclass(frozen=True)
class Table:
    """A table that lists images that exist.

    Attributes:
        file: its path, relative to the folder.
        path: its column that names the images.
        rows: those of images that exist, whose absolute paths are the first column.
        images: their paths relative to the folder.
        missing: why the others were not read.
        label: the column with the labels.
        class_names: the names of the classes, where labels are numbers.
        note: how the labels were read, if that is not obvious.
        listed: all images as the table names them, each with its path as in `images`, None for one that is missing.
        captions: its column with captions.
    """

    file: str
    path: str
    rows: pd.DataFrame
    images: tuple[str, ...]
    missing: Mapping[str, str]
    label: str | None = None
    class_names: tuple[str, ...] | None = None
    note: str | None = None
    listed: tuple[tuple[str, str | None], ...] = ()
    captions: str | None = None

    @property
    def is_metadata(self) -> bool:
        """Whether it is the table that `datasets` knows."""
        return posixpath.splitext(posixpath.basename(self.file))[0].lower() == "metadata"

    @property
    def is_only_paths(self) -> bool:
        """Whether it says nothing about the images but which split they are in."""
        return are_splits_only(self.rows.iloc[:, 1:])

    @property
    def others(self) -> list[str]:
        """Its columns other than that of the images."""
        return [str(name) for name in self.rows.columns[1:]]


@dataclass(frozen=True)
class Tables:
    """The tables of a folder that list images, and what is wrong with others of its tables."""

    found: tuple[Table, ...]
    problems: Mapping[str, str]


def find_tables(tree: FileTree, wanted: Wanted, asked: str | None = None) -> Tables:
    """Read the tables and lists of a folder."""
    index = ImageIndex(tree)
    found, problems = [], {}
    for file in _candidates(tree, asked):
        try:
            table = _read(tree, index, file, wanted)
        except ValueError as error:
            problems[file] = str(error)
            continue
        if isinstance(table, str):
            problems[file] = table
        elif table is not None:
            found.append(table)
    return Tables(tuple(found), problems)


def read(tree: FileTree, tables: Tables, wanted: Wanted, *, any_column: bool) -> Layout | None:
    """Images by the tables that list them, each named after its split or in the folder of its split, or all in one.

    Tables count if they are called "metadata", have labels, or are lists of paths, whose labels are the class folders.
    With `any_column` the only column beside the paths may have the labels, whatever its name, or all of them together;
    and tables count that have no labels but captions.

    Raises:
        ValueError: if two tables list the same image for the same split.
    """
    read_ones = [_labeled(table, wanted, any_column) for table in tables.found]
    if wanted.several:
        read_ones = [_with_lists(table) for table in read_ones]
    labeled = [table for table in read_ones if table.label is not None]
    lists = [table for table in read_ones if table.is_only_paths]
    chosen = [table for table in read_ones if table.is_metadata] and [
        table for table in read_ones if table.label is not None or table.is_metadata
    ]
    by_captions = any_column or wanted.caption is not None
    captioned = [table for table in read_ones if by_captions and table.captions is not None]
    chosen = chosen or labeled or captioned or lists
    in_lists = {} if chosen is lists else _in_lists(lists)
    chosen, unsplit = _without_unsplit([_captioned(table, wanted) for table in _with_folders_as_labels(chosen)])
    if not captioned and not any(table.is_metadata or table.label is not None for table in chosen):
        return None
    names = next((table.class_names for table in chosen if table.class_names is not None), None)
    missing = {path: why for table in chosen for path, why in table.missing.items()} | unsplit
    notes = [table.note for table in chosen if table.note]
    parts: dict[str, list[pd.DataFrame]] = {}
    sources: dict[str, list[str]] = {}
    listed: dict[Any, str] = {}
    for table in chosen:
        found, note = _splits(tree, table, in_lists)
        splits = pd.Series(list(found), index=table.rows.index, dtype="object")
        missing |= {table.images[row]: _NO_SPLIT for row in splits.index[splits.isna()]}
        kept, why, repeated = _once(table, splits)
        missing |= why
        notes += [text for text in (note, repeated) if text]
        for split, rows in table.rows[kept].groupby(splits[kept], sort=False):
            for image in dict.fromkeys(table.images[row] for row in rows.index):
                if (other := listed.setdefault((split, image), table.file)) != table.file:
                    raise ValueError(
                        f"both {other} and {table.file} list the image {image}; pass the right one of them as the "
                        "dataset, or remove the other"
                    )
            parts.setdefault(str(split), []).append(rows)
            sources.setdefault(str(split), []).append(table.file)
    return Layout(
        {split: pd.concat(rows, ignore_index=True) for split, rows in parts.items()},
        {split: tuple(dict.fromkeys(files)) for split, files in sources.items()},
        names,
        left_out=missing,
        notes=tuple(dict.fromkeys(notes)),
        is_metadata=any(table.is_metadata for table in chosen),
    )


def _without_unsplit(tables: Sequence[Table]) -> tuple[list[Table], dict[str, str]]:
    """The tables without those of no split, where others are named after splits; and why the former are left out.

    Such a table is about something else, as Meta.csv with an icon of each class beside Train.csv and Test.csv.
    """
    named = {table.file for table in tables if split_of_file(table.file, "")}
    trains = any(split_of_file(file, "") == TRAIN for file in named)
    others = [
        table for table in tables if table.file not in named and splits_by_column(table.rows, table.file) is None
    ]
    others = [table for table in others if not table.is_metadata and not any(map(split_in, table.images))]
    if not trains or len({split_of_file(file, "") for file in named}) < 2 or not others:
        return list(tables), {}
    why = f"it is listed by {others[0].file}, which is not named after a split, unlike other tables"
    left_out = {image: why for table in others for image in table.images}
    return [table for table in tables if table not in others], left_out


def _in_lists(lists: Sequence[Table]) -> dict[str, str]:
    """The split of every image that is in a list of one."""
    found: dict[str, tuple[str, str]] = {}
    for table in lists:
        if not (split := split_of_file(table.file, "")):
            continue
        for image in table.images:
            other, file = found.setdefault(image, (split, table.file))
            if other != split:
                raise ValueError(
                    f"{file} lists the image {image} for the split {other!r}, and {table.file} for {split!r}; remove "
                    "the lists that do not count"
                )
    return {image: split for image, (split, _) in found.items()}


def _candidates(tree: FileTree, asked: str | None = None) -> Iterator[str]:
    # Text files of these names are about one image each.
    images = {posixpath.splitext(posixpath.basename(image))[0] for image in tree.images}
    for file in tree.files:
        stem, ending = posixpath.splitext(posixpath.basename(file))
        is_table = ending.lower() in TABLES or (is_list(file) and stem not in images)
        if is_table and (file == asked or not is_output(tree.path(file))):
            yield file
    yield from json_tables(tree.files)


def read_rows(path: str) -> pd.DataFrame | None:
    """The rows of a table of any kind; None for other files.

    Raises:
        ValueError: if it cannot be read.
    """
    if path.lower().endswith(JSON):
        return read_json(path)
    return read_list(path) if path.lower().endswith(TEXT) else read_table(path)


def read_listing(tree: FileTree, file: str, wanted: Wanted) -> Table | None:
    """The images that one table of a folder lists, with labels or without; None if it does not seem to list any.

    Raises:
        ValueError: if it cannot be read, or most of its images are missing.
    """
    table = _read(tree, ImageIndex(tree), file, wanted)
    if isinstance(table, str):
        raise ValueError(f"{file}: {table}")
    return table


def _read(tree: FileTree, index: ImageIndex, file: str, wanted: Wanted) -> Table | str | None:
    """A table that lists images, or why it does not, None if it does not seem to be one."""
    rows = read_rows(tree.path(file))
    if rows is None:
        return None
    if posixpath.splitext(file)[1].lower() in SEPARATORS and any(index.find(list(map(str, rows)), file)):
        # The first line is an image, and no heading.
        rows = read_table(tree.path(file), header=None)
        rows = rows.set_axis([f"column {place}" for place in range(1, len(rows.columns) + 1)], axis="columns")
    column, share = path_column(rows, index, file, wanted)
    if column is None and posixpath.basename(file).lower().startswith("metadata."):
        named = ", ".join(map(str, list(rows)[:8]))
        return f"none of its columns {named} names images; call that of their paths file_name, or rename the file"
    if column is None or (is_list(file) and pd.api.types.is_integer_dtype(rows[column])):
        return None
    found = index.find(values(rows[column]), file, strict=True)
    missing = {
        f"{file}: {value}": "it is listed, but there is no such image"
        for value, image in zip(rows[column], found, strict=True)
        if image is None and not pd.isna(value)
    }
    if share < ENOUGH:
        example = next((str(value) for value, image in zip(rows[column], found, strict=True) if image is None), "")
        return (
            f"of the {len(found)} images that its column {column!r} names, {len(missing)} do not exist, such as "
            f"{example!r}"
        )
    listed = [(str(value), image) for value, image in zip(rows[column], found, strict=True) if not pd.isna(value)]
    kept = [image is not None for image in found]
    images = tuple(image for image in found if image is not None)
    rows = rows[kept].drop(columns=[column]).reset_index(drop=True)
    name = wanted.image if column == wanted.image else IMAGE
    rows = rows.drop(columns=[name], errors="ignore")
    captions = caption_column(rows, wanted)
    rows.insert(0, name, [tree.path(image) for image in images])
    return Table(file, column, rows, images, missing, listed=tuple(listed), captions=captions)


def _labeled(table: Table, wanted: Wanted, any_column: bool) -> Table:
    """A table with its column of labels."""
    rows = table.rows.iloc[:, 1:]
    if any_column and table.captions is not None:
        # The number of a caption is no label of its image.
        rows = rows.loc[:, [rows[name].astype(str).groupby(list(table.images)).nunique().max() < 2 for name in rows]]
    label, names = label_column(rows, wanted, any_column)
    if label is None:
        flags = one_hot_labels(rows, wanted.several) if any_column else None
        if flags is None:
            return table
        note = f"Labels are the columns {', '.join(map(str, list(rows)[:3]))}{', ...' * (len(rows.columns) > 3)} of "
        return replace(
            table,
            rows=table.rows.iloc[:, :1].assign(label=flags),
            label=LABEL,
            note=f"{note}{table.file}, {'any' if wanted.several else 'one'} of them 1.",
        )
    if label == wanted.label:
        return replace(table, label=label, class_names=names)
    note = f"Labels are the column {label!r} of {table.file}."
    return replace(table, rows=table.rows.rename(columns={label: LABEL}), label=LABEL, class_names=names, note=note)


def _captioned(table: Table, wanted: Wanted) -> Table:
    """A table without labels with captions in all rows, in the column "caption" unless another was asked for."""
    if table.label is not None or table.captions is None:
        return table
    filled = ~table.rows[table.captions].map(is_missing)
    without = {f"{table.file}: row {row + 1} of {table.images[row]}" for row in filled.index[~filled]}
    name = table.captions if table.captions == wanted.caption else CAPTION
    return replace(
        table,
        rows=table.rows[filled].reset_index(drop=True).rename(columns={table.captions: name}),
        images=tuple(compress(table.images, filled)),
        missing={**table.missing, **dict.fromkeys(without, "it has no caption")},
        note=None if name == table.captions else f"Captions are the column {table.captions!r} of {table.file}.",
    )


def _with_lists(table: Table) -> Table:
    """A table with one row per image, which lists its classes."""
    if table.label is None:
        return table
    rows, kept = with_lists(table.rows, table.label, table.images, table.file)
    note = table.note
    if len(kept) < len(table.rows):
        note = f"{note or ''} {table.file} lists images repeatedly; their classes are put together.".strip()
    return replace(table, rows=rows, images=tuple(table.images[row] for row in kept), note=note)


def _once(table: Table, splits: pd.Series) -> tuple["pd.Series[bool]", dict[str, str], str | None]:
    """Which rows to keep, so that every image has one label and is in a split once; and what the others are."""
    if table.label is None or any(isinstance(value, list) for value in table.rows[table.label]):
        return splits.notna(), {}, None
    labels, images = table.rows[table.label], pd.Series(table.images, index=splits.index, dtype=object)
    one = ~several_of(labels) & (labels.isna() | (labels.groupby(images).transform("nunique") < 2))
    why = dict.fromkeys(images[~one], _SEVERAL)
    repeated = pd.DataFrame({"image": images, "split": splits}).duplicated() & one & splits.notna()
    if table.captions is not None or not repeated.any():
        return splits.notna() & one, why, None
    note = f"{table.file} lists images repeatedly: {int(repeated.sum())} of its rows are skipped."
    return splits.notna() & one & ~repeated, why, note


def _with_folders_as_labels(tables: Sequence[Table]) -> list[Table]:
    """Tables with the class folders of their images as labels, if none has labels but for numbers of these folders."""
    images = [image for table in tables for image in table.images]
    splits, top = split_folders(images), top_folder(images)
    classes = {image: class_of(image, splits, top) for image in images}
    names = {name for name in classes.values() if name is not None}
    if len(names) < 2 or all(map(split_of, names)) or not are_classes(names):
        return list(tables)
    if any(table.label is not None and not _are_numbers_of(classes, table) for table in tables):
        return list(tables)
    return [
        replace(
            table,
            rows=table.rows.assign(
                **{table.label or LABEL: pd.Series([classes[image] for image in table.images], dtype=object)}
            ),
            label=table.label or LABEL,
            note=None,
        )
        for table in tables
    ]


def _are_numbers_of(classes: Mapping[str, str | None], table: Table) -> bool:
    """Whether the labels of a table without class names are numbers, one for each of the class folders."""
    labels = table.rows[table.label]
    if table.class_names is not None or not pd.api.types.is_integer_dtype(labels):
        return False
    pairs = {(number, classes[image]) for number, image in zip(labels, table.images, strict=True)}
    numbers, names = {number for number, _ in pairs}, {name for _, name in pairs}
    return len(pairs) == len(numbers) == len(names) and not any(name is None or name.isdecimal() for name in names)


def _splits(tree: FileTree, table: Table, in_lists: Mapping[str, str]) -> tuple[list[Any], str | None]:
    """The split of every row: by a column, the name or folder of the table, lists, or the folder of the image."""
    if by_column := splits_by_column(table.rows.drop(columns=[table.label or IMAGE], errors="ignore"), table.file):
        return by_column
    own = split_of_file(table.file, default="")
    if own:
        return [own] * len(table.rows), None
    top = top_folder(tree.images)
    folders = folder_of([image for image in table.images if image.startswith(top)], top)
    named = {image: split_of(name) for name, images in folders.items() for image in images}
    others = split_folders(tree.images)
    in_folders = {
        image: split for image in table.images for prefix, split in others.items() if image.startswith(prefix)
    }
    by_image = (in_lists.get(image) or in_folders.get(image) or named.get(image) for image in table.images)
    return [split or TRAIN for split in by_image], None
