"""Rows with their images opened, and rows that are skipped because their image cannot be."""

import io
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError
from transformers.utils import logging

from starft_hf.data.image_formats import needs_plugin
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.rgb import ScaledImage
from starft_hf.data.source import check_row, is_iterable
from starft_hf.utils.files import archive_of
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

Row = dict[str, Any]

RAISE, SKIP = "raise", "skip"
ON_BAD_IMAGE = (RAISE, SKIP)

# The key of a batch for why rows are skipped.
BAD_IMAGES = "bad_images"

# What reading a damaged file raises. In a dataset that opens images itself, other errors are errors of its code.
_OF_FILES = (OSError, EOFError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)

_MOST_NAMED = 20


class BadImageError(ValueError):
    """An image that cannot be read; the message names its row and says why."""


class ImageReader:
    """Reads rows, with the image of each as a `ScaledImage`.

    Images of `datasets` are opened here rather than by it, so that errors can name their row and file, the rest of a
    row is known even if its image is damaged, and an image is decoded no larger than `preprocessor` needs it. Images
    too large for `preprocessor` count as damaged.
    """

    def __init__(self, dataset: Any, column: str, preprocessor: ImagePreprocessor):
        feature = (getattr(dataset, "features", None) or {}).get(column)
        self.column = column
        self.preprocessor = preprocessor
        self.feature: ImageFeature | None = None
        if isinstance(feature, ImageFeature) and feature.decode and _is_plain(dataset):
            self.feature = feature
            dataset = dataset.cast_column(column, ImageFeature(mode=feature.mode, decode=False))
        self.dataset = dataset

    def row(self, index: int) -> Row:
        """The row with that index; raises `BadImageError`, or `TypeError` for what is not an image."""
        where = f"row {index}"
        try:
            row = self.dataset[index]
        except _OF_FILES as error:
            raise _bad(where, error) from error
        return self.opened(row, where)

    def opened(self, row: Row, where: str) -> Row:
        """`row` with its image opened; `where` is its name in errors."""
        check_row(row, f"{where} is")
        if self.column not in row:
            raise TypeError(
                f"{where} has no {self.column!r} but {sorted(row)}: a transform or collation of the dataset drops it. "
                "Pass the dataset without it, dataset.with_format(None), and the image processor prepares the images"
            )
        raw = row[self.column]
        file = raw.get("path") if self.feature is not None and isinstance(raw, dict) else None
        file = file or getattr(raw, "filename", None)
        where = f"{where} ({str(file)!r})" if file else where
        try:
            if raw is None:
                raise ValueError("the row has no image")
            image = self._read(raw)
        except TypeError as error:
            if self.feature is not None:
                raise _bad(where, error, raw) from error
            # Values that are not images rarely occur in one row only.
            raise TypeError(f"{where}: {error}") from error
        except Exception as error:
            raise _bad(where, error, raw) from error
        return {**row, self.column: image}

    def _read(self, raw: Any) -> ScaledImage:
        if self.feature is None:
            return self.preprocessor.read(raw)
        source: Any = io.BytesIO(raw["bytes"]) if raw["bytes"] is not None else raw["path"]
        if isinstance(source, str) and Path(archive_of(source) or "").is_file():
            with fsspec.open(source) as file:
                source = io.BytesIO(file.read())
        if not isinstance(source, io.BytesIO) and not (source and Path(source).is_file()):
            # A file at an address, which `datasets` opens, or none.
            tokens = getattr(self.dataset, "_token_per_repo_id", None)
            return self.preprocessor.read(self.feature.decode_example(raw, token_per_repo_id=tokens))
        with Image.open(source) as file:
            return self.preprocessor.read(file, mode=self.feature.mode, is_own=True)


def check_on_bad_image(choice: str) -> None:
    """Check a value of `on_bad_image`."""
    if choice not in ON_BAD_IMAGE:
        raise ValueError(unknown_name("on_bad_image", choice, ON_BAD_IMAGE))


class SkippedImages:
    """The rows that were skipped because of their images; warns of each once."""

    def __init__(self) -> None:
        self.reasons: dict[str, None] = {}

    def record(self, batch: Mapping[str, Any]) -> int:
        """Record those of a batch; returns their number."""
        reasons = batch.get(BAD_IMAGES, ())
        for reason in reasons:
            if reason not in self.reasons and len(self.reasons) < _MOST_NAMED:
                logger.warning("Skipped, since on_bad_image='skip': %s", reason)
            elif reason not in self.reasons and len(self.reasons) == _MOST_NAMED:
                logger.warning("More than %d images are skipped; further ones are not named.", _MOST_NAMED)
            self.reasons[reason] = None
        return len(reasons)

    def __len__(self) -> int:
        return len(self.reasons)


def _is_plain(dataset: Any) -> bool:
    """Whether rows are returned as they are stored, without a transform or another format."""
    if is_iterable(dataset):
        return getattr(dataset, "_formatting", None) is None
    return bool(dataset.format["type"] is None)


def _bad(where: str, error: Exception, raw: Any = None) -> BadImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    advice = f"repair or remove it, or set on_bad_image={SKIP!r} to skip such rows"
    if isinstance(error, UnidentifiedImageError):
        reason = _needed(raw) or "it is not an image in a format that Pillow knows"
    elif isinstance(error, Image.DecompressionBombError):
        advice += "; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        reason = reason.rstrip(".")
    return BadImageError(f"the image of {where} cannot be used: {reason}; {advice}")


def _needed(raw: Any) -> str | None:
    """The package without which an image, as `datasets` holds it, cannot be opened."""
    if not isinstance(raw, Mapping):
        return None
    content, path = raw.get("bytes"), raw.get("path") or ""
    if content is None and os.path.isfile(path):
        with open(path, "rb") as file:
            content = file.read(12)
    return needs_plugin(path.partition("::")[0], content or b"")
