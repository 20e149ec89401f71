"""Rows with their pictures opened, and what becomes of rows whose picture cannot be."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Image as ImageFeature
from PIL import Image, UnidentifiedImageError
from transformers.utils import logging

from starft_hf.data.images import ImagePreprocessor, as_rgb
from starft_hf.data.source import is_stream
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

Row = dict[str, Any]

RAISE, SKIP = "raise", "skip"
ON_BAD_IMAGE = (RAISE, SKIP)

# Where a batch says which of its rows are left out, and why.
BAD_IMAGES = "bad_images"

# What reading a damaged file raises. Of a data set whose rows come with their pictures opened, anything else is a
# mistake of its own.
_OF_FILES = (OSError, EOFError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)

_MOST_NAMED = 20


class BadImageError(ValueError):
    """A picture that cannot be read; the message names its row and says why."""


class PictureReader:
    """Reads rows, with the picture of each as an upright RGB picture.

    Pictures of `datasets` are opened here rather than by it, so that their row and their file can be named, and what
    else a row holds is known even where its picture is damaged.

    Args:
        dataset: the rows.
        column: which column has the pictures.
        preprocessor: which pictures are to fit.
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
        """The row with that index.

        Raises:
            BadImageError: if its picture cannot be read.
            TypeError: if it has something else instead of a picture.
        """
        where = f"row {index}"
        try:
            row = self.dataset[index]
        except _OF_FILES as error:
            raise _bad(where, error) from error
        return self.opened(row, where)

    def rows(self) -> Iterator[tuple[Row, str]]:
        """The rows of a stream as they come, their pictures not opened yet, with a name for each."""
        for index, row in enumerate(self.dataset):
            yield row, f"row {index} of the stream"

    def opened(self, row: Row, where: str) -> Row:
        """`row` with its picture opened; `where` is what errors call it."""
        raw = row[self.column]
        file = raw.get("path") if self.feature is not None and isinstance(raw, dict) else None
        file = file or getattr(raw, "filename", None)
        where = f"{where} ({str(file)!r})" if file else where
        try:
            if raw is None:
                raise ValueError("there is none")
            if self.feature is not None:
                raw = self.feature.decode_example(raw, token_per_repo_id=_tokens(self.dataset))
            picture = as_rgb(raw)
            self.preprocessor.check(picture)
        except TypeError as error:
            # What is no picture at all is rarely so in one row only.
            raise TypeError(f"{where}: {error}") from error
        except Exception as error:
            raise _bad(where, error) from error
        return {**row, self.column: picture}


def check_on_bad_image(choice: str) -> None:
    """Check that `choice` says what to do about bad images.

    Raises:
        ValueError: if it is neither "raise" nor "skip".
    """
    if choice not in ON_BAD_IMAGE:
        raise ValueError(unknown_name("on_bad_image", choice, ON_BAD_IMAGE))


class SkippedImages:
    """The rows that were left out because of their pictures, each told of once."""

    def __init__(self) -> None:
        self.reasons: dict[str, None] = {}

    def note(self, batch: Mapping[str, Any]) -> int:
        """Take note of those of a batch; returns how many they are."""
        reasons = batch.get(BAD_IMAGES, ())
        for reason in reasons:
            if reason not in self.reasons and len(self.reasons) < _MOST_NAMED:
                logger.warning("Left out, as on_bad_image='skip' says: %s", reason)
            elif reason not in self.reasons and len(self.reasons) == _MOST_NAMED:
                logger.warning("More than %d images are left out; further ones are not named.", _MOST_NAMED)
            self.reasons[reason] = None
        return len(reasons)

    def __len__(self) -> int:
        return len(self.reasons)


def blank_picture() -> Image.Image:
    """What takes the place of a picture in a row that does not count."""
    return Image.new("RGB", (256, 256))


def _is_plain(dataset: Any) -> bool:
    """Whether rows come as they are stored, rather than by a transform or as arrays."""
    if is_stream(dataset):
        return getattr(dataset, "_formatting", None) is None
    return bool(dataset.format["type"] is None)


def _tokens(dataset: Any) -> Any:
    return getattr(dataset, "_token_per_repo_id", None)


def _bad(where: str, error: Exception) -> BadImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    advice = f"repair or remove it, or set on_bad_image={SKIP!r} to leave out rows like it"
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no image in a format that Pillow knows"
    elif isinstance(error, Image.DecompressionBombError):
        advice += "; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        reason = reason.rstrip(".")
    return BadImageError(f"the image of {where} cannot be used: {reason}; {advice}")
