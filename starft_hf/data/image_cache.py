"""Decoded, resized images in one memory-mapped file of bytes, so that many epochs decode once.

For random crops, an image is kept at the size at which the smallest crop of `crop_scale` has as many pixels as the
model takes, so that no crop is enlarged that would not be without the cache; smaller images are kept as they are.
Where preprocessing is deterministic, an image is kept as the model takes it.

The file is filled by all processes together. What is known of its images is stored as the reference's features are: in
verified pieces until all of it is there. Every image has a checksum, which is compared when a run first reads it; a
damaged one is decoded and written again.
"""

import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from starft_hf.data.decoding import RAISE, SKIP, BadImageError, ImageReader
from starft_hf.data.embedding import Pieces, embed_images
from starft_hf.data.fingerprint import images_fingerprint, preprocessing_fingerprint
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.rgb import ScaledImage, as_rgb, upright_size
from starft_hf.data.source import is_fingerprinted, is_iterable
from starft_hf.utils.collectives import all_processes_agree, run_on_main_process
from starft_hf.utils.files import check_writable, flush
from starft_hf.utils.hashing import digest
from starft_hf.utils.store import FeaturePieces, FeatureStore


logger = logging.get_logger(__name__)

AUTO = "auto"

# Decoded images that a process holds at a time while it fills the file.
_AT_ONCE = 8


def checked_image_cache(value: str | os.PathLike[str] | bool | None) -> str | None:
    """A value of `image_cache`: None, "auto" or a folder.

    Raises:
        ValueError: if it is a file.
        OSError: if nothing can be written there.
    """
    if value is None or value is False:
        return None
    folder = AUTO if value is True else os.fspath(value)
    check_writable(_store(folder).folder, "image_cache")
    return folder


def check_cacheable(dataset: Any, what: str) -> None:
    """Raise ValueError if the images of `dataset`, called `what`, cannot be cached, saying why."""
    if is_fingerprinted(dataset):
        return
    if is_iterable(dataset):
        why = "is an iterable dataset, whose images have no index"
    elif isinstance(dataset, Dataset):
        why = "has a transform, which may be random; use map() if it is not"
    else:
        why = f"is a {type(dataset).__name__}, which has no fingerprint that changes with its images"
    raise ValueError(f"image_cache keeps images by their index, but {what} {why}. Leave image_cache at None")


def check_cacheable_sets(**datasets: Any) -> None:
    """The same for datasets, or dictionaries of several, by their names; None is none."""
    for what, given in datasets.items():
        for name, rows in given.items() if isinstance(given, dict) else [(None, given)]:
            if rows is not None:
                check_cacheable(rows, what if name is None else f"{what}[{name!r}]")


def _store(folder: str) -> FeatureStore:
    return FeatureStore(None if folder == AUTO else folder, setting="image_cache")


@dataclass(frozen=True)
class ImageCacheSettings:
    """How the images of datasets are cached.

    Attributes:
        folder: of the files; "auto" is `starft` under HF_HOME.
        crop_scale: of the random crops that images are kept for; None keeps what the image processor makes of them.
        num_workers: processes that decode while a file is filled.
        progress: whether to show progress bars.
    """

    folder: str
    crop_scale: Sequence[float] | None = None
    num_workers: int = 0
    progress: bool = True


def given_image_cache(
    value: str | os.PathLike[str] | bool | None, dataset: Any, num_workers: int, progress: bool
) -> ImageCacheSettings | None:
    """The settings for a value of `image_cache` and the dataset that a function got, once both are checked."""
    folder = checked_image_cache(value)
    if folder is None:
        return None
    check_cacheable(dataset, "dataset")
    return ImageCacheSettings(folder, num_workers=num_workers, progress=progress)


class ImageCache:
    """The cached images of a dataset, by row.

    Args:
        settings: how they are cached.
        dataset: a `datasets` Dataset.
        column: its column with the images.
        preprocessor: what they are for.
        on_bad_image: whether to "raise" or "skip" what cannot be read.

    Raises:
        ValueError: if the dataset has no fingerprint, or it is not known what the image processor needs of an image.
    """

    def __init__(
        self,
        settings: ImageCacheSettings,
        dataset: Any,
        column: str,
        preprocessor: ImagePreprocessor,
        on_bad_image: str = RAISE,
    ):
        check_cacheable(dataset, "the dataset")
        self.settings, self.column, self.on_bad_image = settings, column, on_bad_image
        # Other columns do not change the key.
        self.dataset = dataset if dataset.column_names == [column] else dataset.select_columns([column])
        image_processor, decoding = preprocessor.image_processor, preprocessor.decoding
        self.preprocessor = ImagePreprocessor(image_processor, settings.crop_scale, decoding=decoding)
        self.is_final = settings.crop_scale is None
        size = self.preprocessor.size
        if size is None or (self.is_final and not self.preprocessor.as_bytes):
            raise ValueError(
                f"image_cache keeps of an image what is needed of it, and for a {type(image_processor).__name__} that "
                "is unknown. Leave image_cache at None"
            )
        self._images_key = images_fingerprint(self.dataset, column)
        kept = [*size, settings.crop_scale[0]] if settings.crop_scale else preprocessing_fingerprint(image_processor)
        self.key = digest([self._images_key, decoding, kept])
        self.store = _store(settings.folder)
        self.file = self.store.folder / f"image-cache-{self.key}.bin"
        # For every row: the place of its first byte, width and height here and before, and checksum, `(N, 6)`. All of
        # them are 0 for what could not be read.
        self._entries: Tensor | None = None
        self._bytes: np.ndarray | None = None
        # In memory that worker processes share, so that an image is checked once in a run.
        self._checked = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the file themselves, and need no dataset to read it.
        return {**vars(self), "_bytes": None, "dataset": None}

    def prepare(self, device: torch.device) -> None:
        """Fill the file, by all processes together, unless that was done before.

        Raises:
            OSError: if the disk is too small, or is not one that all processes share.
            BadImageError: if an image cannot be read and these are not skipped.
        """
        if self._entries is None:
            self._entries, _ = self.store.load_or_build(
                "image-cache",
                self.key,
                len(self.dataset),
                device,
                lambda pieces: self._fill(device, pieces),
                self._is_whole,
            )

    def image(self, row: int) -> ScaledImage | None:
        """The image of a row; None if it is not there, could not be read, or is damaged."""
        if self._entries is None:
            return None
        place, width, height, *size, checksum = self._entries[row].tolist()
        if not width:
            return None
        if self._bytes is None:
            self._bytes = np.memmap(self.file, dtype=np.uint8, mode="r")
        pixels: Any = self._bytes[place : place + 3 * width * height].reshape(height, width, 3)
        if not self._checked[row]:
            if zlib.crc32(pixels) != checksum:
                logger.warning("Image %d of %s is damaged, and is decoded again.", row, self.file)
                return None
            self._checked[row] = True
        return self._restored(pixels, (size[0], size[1]))

    def recomputed(self, row: int, image: ScaledImage) -> ScaledImage:
        """An image that is not there, as it would be; one that is damaged there is written again."""
        pixels = self._kept(image)
        if self._entries is not None and self._entries[row, 1]:
            with suppress(OSError):
                self._write(int(self._entries[row, 0]), pixels)
        return self._restored(pixels, image.size)

    def _restored(self, pixels: np.ndarray, size: tuple[int, int]) -> ScaledImage:
        height, width = pixels.shape[:2]
        return ScaledImage(Image.fromarray(pixels), size, (width / size[0], height / size[1]), self.is_final)

    def _kept_size(self, width: int, height: int) -> tuple[int, int]:
        if self.is_final:
            assert self.preprocessor.size is not None
            return self.preprocessor.size
        part = self.preprocessor.smallest_part(width, height)
        assert part is not None
        share = min(1.0, max(wanted / found for found, wanted in zip(*part, strict=True)))
        return math.ceil(width * share), math.ceil(height * share)

    def _kept(self, image: ScaledImage) -> Any:
        """What is kept of an image, `(height, width, 3)`."""
        if self.is_final:
            pixels = self.preprocessor.of_scaled([image])[0]["pixel_values"].permute(1, 2, 0).numpy()
        else:
            size = self._kept_size(*image.size)
            pixels = np.asarray(image.resized(size, Image.Resampling.BICUBIC, self.preprocessor.gap))
        return np.ascontiguousarray(pixels)

    def _write(self, place: int, pixels: Any) -> None:
        with self.file.open("r+b") as file:
            file.seek(place)
            file.write(pixels)

    def _is_whole(self, entries: Tensor) -> bool:
        ends = entries[:, 0] + 3 * entries[:, 1] * entries[:, 2]
        return bool((ends <= _state_of(self.file)[0]).all())

    def _fill(self, device: torch.device, pieces: FeaturePieces) -> Tensor:
        skips = self.on_bad_image == SKIP
        sizes_of = ImageReader(self.dataset, self.column, _SizeReader(None))
        sizes, _ = self.store.load_or_build(
            "image-sizes",
            self._images_key,
            len(self.dataset),
            device,
            lambda own: self._rows("Image sizes", _Numbers(sizes_of, _size_of, 2, skips), device, own),
        )
        kept = [self._kept_size(*size) if all(size) else (0, 0) for size in sizes.tolist()]
        ends = np.cumsum([3 * width * height for width, height in kept])
        places = [0, *ends.tolist()]
        self._make_room(places[-1], device, pieces)

        images = ImageReader(self.dataset, self.column, self.preprocessor)
        numbers = _Numbers(images, partial(self._write_entry, places), 6, skips)
        entries = self._rows("Image cache", numbers, device, _FlushedPieces(self.file, pieces))
        flush(self.file)
        return entries

    def _write_entry(self, places: Sequence[int], row: int, image: ScaledImage) -> list[int]:
        pixels = self._kept(image)
        if pixels.nbytes != places[row + 1] - places[row]:
            # Its decoder gives another size than the file says. Such images are not cached.
            return [0] * 6
        self._write(places[row], pixels)
        return [places[row], *pixels.shape[1::-1], *image.size, zlib.crc32(pixels)]

    def _rows(self, name: str, numbers: "_Numbers", device: torch.device, pieces: Pieces) -> Tensor:
        """The numbers of all images, computed by all processes."""
        return embed_images(
            lambda batch: (batch["numbers"],),
            numbers,
            range(len(self.dataset)),
            device,
            batch_size=_AT_ONCE,
            num_workers=self.settings.num_workers,
            progress=name if self.settings.progress else None,
            pieces=pieces,
        )[0]

    def _make_room(self, size: int, device: torch.device, pieces: FeaturePieces) -> None:
        """Make the file as large as it will be; pieces of one that was not are removed."""

        def make() -> None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            needed = size - _state_of(self.file)[1]
            free = shutil.disk_usage(self.file.parent).free
            if needed > free:
                raise OSError(
                    f"image_cache needs {needed / 2**30:,.1f} GiB for {len(self.dataset):,} images in "
                    f"{str(self.file.parent)!r}, where {free / 2**30:,.1f} are free; make room, set image_cache to a "
                    "folder on a larger disk, or leave it at None"
                )
            with self.file.open("ab") as file:
                file.truncate(size)

        if not all_processes_agree(_state_of(self.file)[0] == size, device):
            pieces.remove()
        run_on_main_process(make)
        if not all_processes_agree(_state_of(self.file)[0] == size, device):
            raise OSError(
                f"image_cache is filled by all processes, but some of them do not see {str(self.file)!r}; set it to a "
                "folder on a disk that all machines share, or leave it at None"
            )


def _size_of(row: int, image: ScaledImage) -> list[int]:
    return list(image.size)


class _SizeReader(ImagePreprocessor):
    """Reads only the size of an image, which takes no decoding."""

    def read(self, image: Any, *, mode: str | None = None, is_own: bool = False) -> ScaledImage:
        size = upright_size(image) if isinstance(image, Image.Image) and all(image.size) else as_rgb(image).size
        return ScaledImage(Image.new("RGB", (1, 1)), size)


class _Numbers(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples with the numbers of an image; zeros for one that is skipped because it cannot be read."""

    def __init__(
        self, reader: ImageReader, numbers_of: Callable[[int, ScaledImage], list[int]], columns: int, skips: bool
    ):
        self.reader, self.numbers_of, self.columns, self.skips = reader, numbers_of, columns, skips

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            numbers = self.numbers_of(index, self.reader.row(index)[self.reader.column])
        except BadImageError as error:
            if not self.skips:
                raise
            return {"image": {"numbers": torch.zeros(self.columns, dtype=torch.int64)}, "bad_image": str(error)}
        return {"image": {"numbers": torch.tensor(numbers)}}


class _FlushedPieces:
    """Pieces that are saved once everything in a file that they are about is on the disk."""

    def __init__(self, file: Path, pieces: Pieces):
        self.file, self.pieces, self.size = file, pieces, pieces.size

    def load(self) -> list[Tensor]:
        return self.pieces.load()

    def save(self, number: int, rows: Tensor) -> None:
        flush(self.file)
        self.pieces.save(number, rows)


def _state_of(file: Path) -> tuple[int, int]:
    """The size of a file, and how much of it is on the disk; 0 if it does not exist."""
    try:
        state = file.stat()
    except OSError:
        return 0, 0
    return state.st_size, 512 * getattr(state, "st_blocks", 0)
