"""Every image of a folder, a table or a file, with its label where that is known: what a model is to classify."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from starft_hf.data.columns import ColumnSettings, resolve_columns
from starft_hf.data.files import DataFound, read_files, tree_around
from starft_hf.data.image_formats import is_image, needs_plugin
from starft_hf.data.imagenet import names_of_ids
from starft_hf.data.layouts import FileTree
from starft_hf.data.layouts.build import as_datasets
from starft_hf.data.layouts.json_tables import ENDING as JSON
from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.listed import read_listing
from starft_hf.data.layouts.lists import ENDING as TEXT
from starft_hf.data.layouts.resolve import image_column, label_column, resolve
from starft_hf.data.layouts.split_names import TRAIN
from starft_hf.data.layouts.table_columns import Wanted, values
from starft_hf.data.layouts.tables import TABLES, is_output
from starft_hf.data.layouts.tree import BROKEN_LINK, HIDDEN, NOT_UTF8
from starft_hf.data.loading import has_configurations, is_saved, read_data
from starft_hf.data.shards import without_metadata_of_shards
from starft_hf.utils.files import local_or_hub


# The images of a folder with splits that are in none of them.
NO_SPLIT = "none"

_PARQUET = ".parquet"
_TABLES, _SHARDS = (*TABLES, JSON, TEXT), (".tar", _PARQUET)
# Columns of a layout's rows while they are sorted.
_SPLIT, _PATH = "__split__", "__path__"


@dataclass(frozen=True)
class AllImages:
    """Images to classify.

    Attributes:
        splits: datasets by the names of their splits; a single one may have any name.
        root: the folder that the paths of files are relative to; None if they are not in one.
        group_columns: the columns that usually name the groups of this kind of data.
        labels_are_folders: whether the labels are names of folders, which need not be classes.
        left_out: why files were not read, by their paths.
        notes: what was decided in reading them, in sentences.
    """

    splits: Mapping[str, Any]
    root: Path | None = None
    group_columns: tuple[str, ...] = ()
    labels_are_folders: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_all_images(
    source: str | os.PathLike[str],
    config: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = LABEL,
    streaming: bool = False,
) -> AllImages:
    """All images of a dataset, labeled or not.

    Args:
        source: a single image; a folder of images, however they lie in it; or anything that `load_splits` reads. Of a
            folder every image that is not hidden counts, in the order of their paths, and of a table or a list every
            image that it names, in its order. Their labels, groups and splits are those that `load_splits` finds.
        config: the configuration, if there are several.
        image_column: the name for the column with the images, or the column of a table that has their paths.
        label_column: the name for the column with the labels, or the column of a table that has them.
        streaming: read the rows of shards and of datasets on the Hub as they are needed.

    Raises:
        FileNotFoundError: if neither a file nor, unless `source` looks like a path, a dataset on the Hub is found.
        ValueError: if there are no images.
    """
    path, wanted = Path(local_or_hub(source, "dataset")), Wanted(image_column, label_column)
    if path.is_file() and config is None:
        return _of_file(path, wanted, streaming)
    if path.is_dir() and config is None and not is_saved(path) and not has_configurations(path):
        return _of_folder(path, wanted, streaming)
    found = read_data(source, config, wanted, streaming=streaming, validation_split=0.0)
    return _found(found, path if path.is_dir() else None)


def class_names_of(source: str | os.PathLike[str], label_column: str = LABEL) -> tuple[str, ...]:
    """The names of the classes of a labeled dataset, in label order.

    Raises:
        ValueError: if it has none.
    """
    splits = read_data(source, None, Wanted(label=label_column), validation_split=0.0).splits
    rows = splits[TRAIN] if TRAIN in splits else next(iter(splits.values()))
    names = resolve_columns(rows, ColumnSettings(label_column=label_column), what=str(source)).class_names
    if names is None:
        raise ValueError(f"{str(source)!r} has no labels in column {label_column!r}, so it names no classes")
    return names


def _found(found: DataFound, root: Path | None) -> AllImages:
    return AllImages(found.splits, root, found.group_columns, False, found.left_out, found.notes)


def _of_file(file: Path, wanted: Wanted, streaming: bool) -> AllImages:
    if is_image(file.name):
        tree = FileTree(file.parent, [file.name])
        return _all_of(tree, [tree.path(file.name)], None, wanted)
    table = None
    if file.suffix.lower() in _TABLES:
        tree = tree_around(file)
        try:
            table = read_listing(tree, file.name, wanted)
        except ValueError:
            # It may hold the images themselves.
            if file.suffix.lower() != _PARQUET:
                raise
    if table is None:
        return _found(read_files(file, wanted, streaming=streaming), file.parent)
    paths = dict.fromkeys(_listed_path(tree, *pair) for pair in table.listed)
    notes = (f"{file.name} lists images repeatedly; each is classified once.",)
    layout, others = _layout(tree, wanted)
    found = _all_of(tree, list(paths), layout, wanted)
    return replace(found, notes=(*others, *(notes if len(paths) < len(table.listed) else ())))


def _listed_path(tree: FileTree, value: str, image: str | None) -> str:
    """The absolute path of an image that a table lists, beginning with the folder of the table if it is relative."""
    if os.path.isabs(value):
        return os.path.normpath(value if image is None else tree.path(image))
    return tree.path(value.replace("\\", "/") if image is None else image)


def _of_folder(folder: Path, wanted: Wanted, streaming: bool) -> AllImages:
    tree = FileTree(folder)
    layout, notes = _layout(tree, wanted)
    data = [file for file in without_metadata_of_shards(tree.files)[0] if not is_output(tree.path(file))]
    if not tree.images or (layout is None and any(file.lower().endswith(_SHARDS) for file in data)):
        try:
            return _found(read_files(folder, wanted, streaming=streaming), folder)
        except ValueError:
            if not tree.images:
                raise
    found = _all_of(tree, list(map(tree.path, tree.images)), layout, wanted)
    others = {file: why for file, why in tree.left_out.items() if why != HIDDEN}
    unread = {file: why for file, why in others.items() if why not in (BROKEN_LINK, NOT_UTF8) or is_image(file)}
    unread |= {file: why for file in tree.files if (why := needs_plugin(file)) is not None}
    return replace(found, left_out=unread, notes=notes)


def _layout(tree: FileTree, wanted: Wanted) -> tuple[Layout | None, tuple[str, ...]]:
    """Which images have which labels, if that is known, and why not where something prevents it."""
    try:
        return resolve(tree, wanted), ()
    except ValueError as error:
        return None, (f"Labels are not read: {error}",)


def _all_of(tree: FileTree, paths: Sequence[str], layout: Layout | None, wanted: Wanted) -> AllImages:
    """The images `paths`, with what a layout knows of them, in its splits if these are several."""
    if layout is None:
        frames = {TRAIN: pd.DataFrame({wanted.image: paths})}
        return AllImages(as_datasets(Layout(frames, {}), wanted, tree.root), tree.root)
    own = [_named(rows, layout, wanted, tree.root) for rows in layout.splits.values()]
    known = pd.concat([rows.assign(**{_SPLIT: split}) for split, rows in zip(layout.splits, own, strict=True)])
    known[_PATH] = known[wanted.image].map(os.path.normpath)
    known = known.drop_duplicates(_PATH).set_index(_PATH)
    # Of integers, missing ones would make floats.
    known = known.astype({name: "Int64" for name in known if pd.api.types.is_integer_dtype(known[name])})
    rows = known.reindex(list(map(os.path.normpath, paths)))
    rows[wanted.image] = list(paths)
    splits = rows.pop(_SPLIT).to_numpy(object)
    if len(layout.splits) == 1:
        splits[:] = next(iter(layout.splits))
    splits[pd.isna(splits)] = NO_SPLIT
    frames = {name: rows[splits == name].reset_index(drop=True) for name in (*layout.splits, NO_SPLIT)}
    frames = {name: part for name, part in frames.items() if len(part)}
    by_folders = {source for names in layout.sources.values() for source in names}.isdisjoint(tree.files)
    return AllImages(
        as_datasets(replace(layout, splits=frames, class_names=None), wanted, tree.root),
        tree.root,
        layout.group_columns,
        labels_are_folders=by_folders,
    )


def _named(rows: pd.DataFrame, layout: Layout, wanted: Wanted, root: Path) -> pd.DataFrame:
    """The rows with the columns that were asked for, and with the names of classes as labels."""
    label = label_column(rows, wanted)
    names = {image_column(rows, wanted): wanted.image, **({} if label is None else {label: wanted.label})}
    rows = rows.rename(columns=names)
    if label is None:
        return rows
    labels = values(rows[wanted.label])
    if layout.class_names is not None:
        labels = [layout.class_names[int(it)] if isinstance(it, (int, float)) else it for it in labels]
    distinct = list(dict.fromkeys(it for it in labels if it is not None))
    words = dict(zip(distinct, names_of_ids(distinct, root) or distinct, strict=True))
    rows[wanted.label] = pd.Series([it and words[it] for it in labels], index=rows.index, dtype=object)
    return rows
