"""What is known of the rows to classify: the file of an image, its label and its group."""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from datasets import ClassLabel, Dataset
from datasets import Image as ImageFeature
from transformers.utils import logging

from starft_hf.data.columns import read_column
from starft_hf.data.groups import Groups, resolve_groups
from starft_hf.data.imagenet import names_of_ids
from starft_hf.data.labels import spelled
from starft_hf.data.shards.tars import PROTOCOL as TAR
from starft_hf.data.source import column_names, plain
from starft_hf.utils.files import archive_of


logger = logging.get_logger(__name__)

_IMAGE = "image"


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset that are read, and what the values of its labels mean.

    Attributes:
        image: the column with the images.
        label: the column with the labels, if there is one.
        groups: the columns that name a row's group, if any.
        names: what labels that are numbers stand for; empty if that is unknown.
        is_known: whether the dataset names its columns.
    """

    image: str
    label: str | None = None
    groups: Groups | None = None
    names: Sequence[str] = ()
    is_known: bool = True

    @property
    def has_labels(self) -> bool:
        """Whether there is a column with labels for sure."""
        return self.label is not None and self.is_known

    @property
    def others(self) -> list[str]:
        """The columns other than that of the images."""
        return list(
            dict.fromkeys([*([self.label] if self.label else ()), *(self.groups.columns if self.groups else ())])
        )

    def label_of(self, row: Mapping[str, Any]) -> str | None:
        """The name of a row's class, or those of several with bars between; None if unknown, as -1 marks it."""
        return self._named(None if self.label is None else plain(row.get(self.label)))

    def _named(self, value: Any) -> str | None:
        if isinstance(value, list):
            names = [self._named(part) for part in value]
            return None if None in names else "|".join(map(str, names))
        if value is None or value != value or isinstance(value, dict):
            return None
        if isinstance(value, str):
            return value
        if float(value).is_integer() and self.names:
            return self.names[int(value)] if 0 <= value < len(self.names) else None
        return spelled(value)

    def group_of(self, row: Mapping[str, Any]) -> str | None:
        """The name of a row's group; None if one of the values that make it is missing."""
        if self.groups is None:
            return None
        values = {**row, **({self.label: self.label_of(row)} if self.label in self.groups.columns else {})}
        missing = any(value is None or value != value for value in map(values.get, self.groups.columns))
        return None if missing else self.groups.of(values)


def resolve(dataset: Any, image: str | None, label: str, groups: Sequence[str]) -> Columns:
    """The columns of a dataset; those of labels and groups may be missing.

    Raises:
        ValueError: if that of the images is.
    """
    present, features = column_names(dataset), getattr(dataset, "features", None) or {}
    image = image or _image_of(present or (), features)
    if present is not None and image not in present:
        raise ValueError(
            f"dataset has no column {image!r}; its columns are {present}. Set image_column to the right one"
        )
    feature = features.get(label)
    # Of a list, that of its entries.
    feature = getattr(feature, "feature", feature)
    names = (names_of_ids(feature.names) or feature.names) if isinstance(feature, ClassLabel) else ()
    label_column = label if present is None or label in present else None
    return Columns(
        image, label_column, resolve_groups(dataset, groups, label=label), names, is_known=present is not None
    )


def _image_of(present: Sequence[str], features: Mapping[str, Any]) -> str:
    """The column that is called image, or else the only one of images."""
    images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    return images[0] if len(images) == 1 and _IMAGE not in present else _IMAGE


def values_of(dataset: Any, columns: Columns) -> Iterator[Mapping[str, Any]]:
    """The label and the groups of every row of a dataset that is read by index, as they are stored."""
    names = columns.others
    if not names:
        return ({} for _ in range(len(dataset)))
    if not hasattr(dataset, "select_columns"):
        return (dataset[index] for index in range(len(dataset)))
    values = zip(*(read_column(dataset, name) for name in names), strict=True)
    return (dict(zip(names, row, strict=True)) for row in values)


def paths_of(dataset: Any, column: str) -> list[str | None]:
    """The path of every image of a dataset that is read by index; None where it is unknown. No image is read."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    if not isinstance(dataset, Dataset) or not isinstance(feature, ImageFeature):
        return [None] * len(dataset)
    paths: list[str | None] = []
    for chunk in dataset.data.column(column).chunks:
        storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        paths += storage.field("path").to_pylist() if pa.types.is_struct(storage.type) else [None] * len(storage)
    if dataset._indices is not None:
        paths = [paths[index] for index in dataset._indices.column(0).to_pylist()]
    return paths


def file_names(paths: Sequence[str | None], root: Path | None) -> list[str] | None:
    """Distinct names of the files of all rows, without the place of the data on this machine; None if there are none.

    They are relative to `root`, or to the folder that all of the files share if some lie elsewhere, with forward
    slashes. A file in an archive has the name of that before its own.
    """
    if any(path is None for path in paths):
        return None
    pairs = [_archive_and_name(path) for path in paths if path is not None]
    outer = _relative([archive for archive, _ in pairs], root)
    names = [
        posixpath.join(archive, name) if name else archive for archive, (_, name) in zip(outer, pairs, strict=True)
    ]
    repeated = next((name for name, times in Counter(names).items() if times > 1), None)
    if repeated is not None:
        logger.warning("Several images are called %r, so rows are numbered instead of named by their files.", repeated)
        return None
    return names


def _archive_and_name(path: str) -> tuple[str, str]:
    """An archive and a file in it, of `zip://1.png::photos.zip`; or a path and no name."""
    if (outer := archive_of(path)) is None:
        return path, ""
    inner = path.rpartition("::")[0]
    protocol, _, name = inner.rpartition("::")[2].partition("://")
    name = unquote(name.partition("/")[2]) if protocol == TAR else name
    return outer, posixpath.normpath(name)


def _relative(paths: Sequence[str], root: Path | None) -> list[str]:
    parts = [path.replace(os.sep, "/").split("/") for path in paths]
    start = [] if root is None else root.absolute().as_posix().rstrip("/").split("/")
    if start and all(own[: len(start)] == start for own in parts):
        return [posixpath.normpath("/".join(own[len(start) :])) for own in parts]
    # Absolute paths and addresses, less the folders that all of them are in.
    elsewhere = [not own[0] or own[0].endswith(":") for own in parts]
    levels = zip(*(own[:-1] for own, away in zip(parts, elsewhere, strict=True) if away), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    return ["/".join(own[shared if away else 0 :]) for own, away in zip(parts, elsewhere, strict=True)]
