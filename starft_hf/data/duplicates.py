"""Images that occur in several splits, byte for byte."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
from datasets import Image
from tqdm.auto import tqdm

from starft_hf.data.source import is_iterable
from starft_hf.utils.files import archive_of


# Bytes at each end of an image that are compared before all of it is.
_END = 2**12
_PATIENCE = 3
# Rows that are read at once.
_ROWS = 256


@dataclass(frozen=True)
class Duplicate:
    """An image of one split that is also in another: two splits, and the path or the row of the image in each."""

    splits: tuple[str, str]
    images: tuple[str, str]


@dataclass(frozen=True)
class _Image:
    split: str
    name: str
    size: int
    read: Callable[[int, int], bytes]


def duplicates_across(splits: Mapping[str, Any], column: str) -> list[Duplicate]:
    """The images that occur in more than one split, with the same bytes; each is named once for every further split.

    Args:
        splits: `datasets` Datasets by name; iterable ones are not looked into.
        column: the column with the images.
    """
    with tqdm(desc="Looking for duplicates across splits", unit=" images", delay=_PATIENCE, leave=False) as bar:
        found = [image for name, dataset in splits.items() for image in _images(name, dataset, column, bar)]
        same: list[list[_Image]] = [found]
        for key in (_size, _ends, _content):
            same = [part for images in same for part in _apart(images, key) if len({one.split for one in part}) > 1]
    duplicates = []
    for images in same:
        # The last one assigned is the first of its split.
        by_split = {image.split: image for image in reversed(images)}
        first, *others = [by_split[name] for name in splits if name in by_split]
        duplicates += [Duplicate((first.split, one.split), (first.name, one.name)) for one in others]
    return sorted(duplicates, key=lambda one: (one.splits, one.images))


def are_embedded(dataset: Any, column: str) -> bool:
    """Whether the images of a dataset are in tables or archives rather than files of their own, by its first row."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    if is_iterable(dataset) or not isinstance(feature, Image) or not len(dataset):
        return False
    first = dataset.select_columns([column]).select([0]).with_format(None).cast_column(column, Image(decode=False))
    value = first[0][column] or {}
    return value.get("bytes") is not None or archive_of(value.get("path") or "") is not None


def _images(split: str, dataset: Any, column: str, bar: Any) -> list[_Image]:
    feature = (getattr(dataset, "features", None) or {}).get(column)
    if is_iterable(dataset) or not isinstance(feature, Image):
        return []
    found = []
    raw = dataset.select_columns([column]).with_format(None).cast_column(column, Image(decode=False))
    batches = raw.with_format("arrow").iter(batch_size=_ROWS)
    for row, value in enumerate(value for batch in batches for value in batch[column].to_pylist()):
        bar.update()
        path, content = (value or {}).get("path"), (value or {}).get("bytes")
        if content is None and path is not None and archive_of(path) is not None:
            with fsspec.open(path) as file:
                content = file.read()
        if content is not None:
            digest = hashlib.blake2b(content, digest_size=16).digest()
            # What is kept of an image in memory is its hash.
            found.append(_Image(split, path or f"row {row}", len(content), _known(digest)))
        elif path is not None and os.path.isfile(path):
            found.append(_Image(split, path, os.path.getsize(path), _reader(path)))
    return found


def _reader(path: str) -> Callable[[int, int], bytes]:
    def read(start: int, size: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)

    return read


def _known(digest: bytes) -> Callable[[int, int], bytes]:
    return lambda start, size: digest


def _size(image: _Image) -> Any:
    return image.size


def _ends(image: _Image) -> Any:
    return image.read(0, _END), image.read(max(0, image.size - _END), _END)


def _content(image: _Image) -> Any:
    return hashlib.blake2b(image.read(0, image.size), digest_size=16).digest()


def _apart(images: list[_Image], key: Callable[[_Image], Any]) -> list[list[_Image]]:
    parts = defaultdict(list)
    for image in images:
        parts[key(image)].append(image)
    return list(parts.values())
