"""Datasets in files: folders of images in any of the known layouts, tables and shards."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import DatasetDict, IterableDataset, IterableDatasetDict

from starft_hf.data.image_formats import is_image, needs_plugin
from starft_hf.data.labels import class_feature
from starft_hf.data.layouts import FileTree
from starft_hf.data.layouts.build import as_datasets
from starft_hf.data.layouts.json_tables import ENDING as JSON
from starft_hf.data.layouts.listed import read_rows
from starft_hf.data.layouts.lists import is_list
from starft_hf.data.layouts.resolve import PREDICTION, is_document, no_classes, resolve
from starft_hf.data.layouts.results import MODELS
from starft_hf.data.layouts.split_names import TRAIN, in_order, split_of_file, split_of_value
from starft_hf.data.layouts.table_columns import Wanted, is_called_split, splits_by_column
from starft_hf.data.layouts.tables import TABLES, holds_images, is_prediction, read_table
from starft_hf.data.layouts.tree import check_utf8
from starft_hf.data.shards import read_parquet, read_webdataset, without_metadata_of_shards
from starft_hf.data.urls import check_no_urls


# Paths of a table that are tried before all that lies beside it is listed.
_TRIED = 20

_LISTING = (*TABLES, JSON)
_EXPECTED = (
    "expected images in one folder per class, images listed in a table (csv, tsv, jsonl or parquet), *.parquet with "
    "images, *.tar or what save_to_disk writes"
)

_AS_MODEL = (
    ", and this one as the model (--model of starft train, the first argument of evaluate, repair and the like)"
)


@dataclass(frozen=True)
class DataFound:
    """A dataset as it was found.

    Attributes:
        splits: its splits, by name.
        sources: for every split the files or folders that it was read from, as far as known.
        left_out: why files were not read, by their paths relative to the folder.
        group_columns: the columns that usually name the groups of this kind of data; empty if there are none.
        notes: what was decided in reading it, in sentences.
        held_out: the share of a dataset without splits that is its split "validation"; 0 if nothing was held out.
    """

    splits: DatasetDict | IterableDatasetDict
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    group_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    held_out: float = 0.0


def read_files(path: Path, wanted: Wanted, *, streaming: bool) -> DataFound:
    """The dataset in a folder or a single file. With `streaming`, shards are read as they are needed.

    Raises:
        ValueError: if there is none, or none whose images have classes.
    """
    tree = FileTree(path) if path.is_dir() else _around(path)
    layout = resolve(tree, wanted, None if path.is_dir() else path.name)
    if layout is not None:
        splits = as_datasets(layout, wanted, tree.root)
        return DataFound(splits, layout.sources, layout.left_out, layout.group_columns, layout.notes)
    data, left_out = without_metadata_of_shards(tree.files)
    if path.is_dir():
        left_out |= {file: PREDICTION for file in data if is_prediction(tree.path(file))}
        data = [file for file in data if file not in left_out]
    for ending, read in ((".tar", read_webdataset), (".parquet", read_parquet)):
        files = [file for file in data if file.lower().endswith(ending)]
        if files:
            return _of_shards(tree, files, left_out, read, wanted, streaming)
    if tree.images:
        raise ValueError(no_classes(tree, wanted))
    if tree.result is not None:
        what, named = tree.result
        raise ValueError(
            f"{str(path)!r} is {what}, as its {named} shows, not data: pass the folder of the images as the dataset"
            f"{_AS_MODEL * (what in MODELS)}"
        )
    for file in tree.files:
        if file.lower().endswith(TABLES):
            check_no_urls(read_table(tree.path(file)), file)
    skipped = "".join(f". {file} is skipped: {why}" for file, why in list(tree.left_out.items())[:1])
    found = sorted({posixpath.splitext(file)[1] or "no ending" for file in tree.files})
    plugins = "; ".join(sorted({why for file in tree.files if (why := needs_plugin(file)) is not None}))
    raise ValueError(
        f"no dataset could be read from {str(path)!r}: {_EXPECTED}, found files with {', '.join(found) or 'nothing'}"
        f"{plugins and f'. {plugins}'}{skipped}"
    )


def _of_shards(
    tree: FileTree, files: Sequence[str], left_out: Mapping[str, str], read: Any, wanted: Wanted, streaming: bool
) -> DataFound:
    sources: dict[str, list[str]] = {}
    for file in files:
        sources.setdefault(split_of_file(file), []).append(file)
    shards = read(
        {split: [tree.path(file) for file in sources[split]] for split in in_order(sources)},
        image_column=wanted.image,
        label_column=wanted.label,
        streaming=streaming,
    )
    known = {*files, *left_out}
    others = {file: "it is not a shard" for file in tree.files if file not in known and not is_document(file)}
    samples = {tree.relative(path): why for path, why in shards.left_out.items()}
    found = DataFound(
        shards.splits,
        {split: tuple(own) for split, own in sources.items()},
        {**tree.left_out, **left_out, **others, **samples},
        notes=shards.notes,
    )
    return found if any(split_of_file(file, "") for file in files) else _by_split_column(found, wanted)


def _by_split_column(found: DataFound, wanted: Wanted) -> DataFound:
    """Shards whose names say nothing of splits, divided by a column "split" or the like.

    Raises:
        ValueError: if they are streamed, so that this would take reading all of them.
    """
    (name, part), *_ = found.splits.items()
    columns = [column for column in part.column_names or () if column not in (wanted.image, wanted.label)]
    named = [column for column in columns if is_called_split(column)]
    if not named:
        return found
    if isinstance(part, IterableDataset):
        raise ValueError(
            f"column {named[0]!r} says which split a row is in, and shards that are streamed are divided by their "
            "files; write a file for every split, such as train-00000-of-00001.parquet, or do not stream"
        )
    rows = part.select_columns(named).to_pandas()
    for column in named:
        if (names := class_feature(part.features[column])) is not None:
            rows[column] = rows[column].map(dict(enumerate(names)))
    means = {split_of_value(value) for value in rows[named[0]].dropna()}
    if TRAIN not in means or any(value.isdecimal() for value in means):
        # Parts of another kind, such as those of cross-validation.
        return found
    splits, note = splits_by_column(rows, found.sources[name][0]) or ([], "")
    rows_of: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        rows_of.setdefault(split or "", []).append(row)
    without = {f"{name}: row {row}": "it is listed without a split" for row in rows_of.pop("", ())}
    parts = DatasetDict({split: part.select(rows_of[split]) for split in in_order(rows_of)})
    sources = dict.fromkeys(parts, found.sources[name])
    notes = (*found.notes, note)
    return replace(found, splits=parts, sources=sources, left_out={**found.left_out, **without}, notes=notes)


def _around(file: Path) -> FileTree:
    """What `tree_around` gives, for a file that may be a table, a list or a shard by its name."""
    if file.suffix.lower() not in (".tar", *_LISTING) and not is_list(file.name):
        raise ValueError(
            f"{str(file)!r} is not a table ({', '.join(_LISTING)}), a list (.txt) or a shard (.tar); pass a folder of "
            "images, unpack an archive, or write a table of another kind as csv"
        )
    return tree_around(file)


def tree_around(file: Path) -> FileTree:
    """A table with the images that it lists, or with all that lie beside it if it does not list paths; or a shard."""
    check_utf8(file)
    if file.suffix.lower() == ".tar" or holds_images(file):
        return FileTree(file.parent, [file.name])
    rows = read_rows(str(file))
    named = [] if rows is None else _paths_in(rows, file.parent)
    if named:
        return FileTree(file.parent, [file.name, *named])
    beside = FileTree(file.parent)
    # Other tables there are not asked for.
    others = [
        path for path in beside.files if path == file.name or not (path.lower().endswith(TABLES) or is_list(path))
    ]
    return FileTree(file.parent, others)


def _paths_in(rows: pd.DataFrame, folder: Path) -> list[str]:
    """The paths of images, relative to `folder`, in the first column that holds paths of files there."""
    for name in rows:
        # Of a table without a heading, the first image stands in its place.
        strings = [value for value in (name, *rows[name]) if isinstance(value, str)]
        values = [value for value in strings if is_image(value)]
        if values and all((folder / value.replace("\\", "/")).is_file() for value in values[:_TRIED]):
            paths = [os.path.relpath(folder / value.replace("\\", "/"), folder) for value in values]
            return [path.replace(os.sep, "/") for path in paths if (folder / path).is_file()]
    return []
