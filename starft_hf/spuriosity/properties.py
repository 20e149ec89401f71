"""What embeddings hardly see of images: brightness, borders, JPEG quality, folders, and what a camera wrote."""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import PurePath
from typing import Any

import numpy as np
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from starft_hf.data.rgb import as_rgb, upright_size
from starft_hf.spuriosity.statistics import Floats, Ints
from starft_hf.utils.names import readable


@dataclass(frozen=True)
class Property:
    """A measured property: how images with more and with less of it are, and what captions can say of these."""

    name: str
    more: str
    less: str
    caption_more: str | None = None
    caption_less: str | None = None


MEASURED = (
    Property("brightness", "brighter", "darker", "{}, brightly lit.", "{}, in the dark."),
    Property("contrast", "richer in contrast", "poorer in contrast", "{}, in high contrast.", "{}, in low contrast."),
    Property("sharpness", "sharper", "more blurred", "{}, in sharp focus.", "{}, blurred."),
    Property("colorfulness", "more colorful", "less colorful", "{}, in vivid colors.", "{}, in black and white."),
    Property("warmth", "of warmer colors", "of colder colors", "{}, in warm light.", "{}, in cold light."),
    Property("size", "larger", "smaller"),
    Property("aspect", "wider", "taller"),
    Property("border", "more bordered", "less bordered", "{}, with a border."),
    Property("JPEG quality", "of higher JPEG quality", "of lower JPEG quality", None, "{}, a low quality JPEG."),
)

# Properties without an order: file type, folder, EXIF camera, EXIF month.
_FILE_TYPE, _CAMERA, _MONTH = "file type", "camera", "month"

# Pixels are measured at no more than this many on a side.
_SIDE = 256
# A row or column of pixels belongs to a border if no channel varies by more than this along it.
_FLAT = 12
# Of a property without an order, values that fewer images have are one, "another".
_FEWEST = 5
_MOST_VALUES = 40

_MAKE, _MODEL, _DATE, _EXIF, _TAKEN = 0x010F, 0x0110, 0x0132, 0x8769, 0x9003


@dataclass(frozen=True)
class Properties:
    """The properties of N images.

    Attributes:
        measured: `(N, len(MEASURED))`; NaN where unknown.
        named: of properties without an order, what an image has, such as ("camera", "Nikon D90"), `(M,)`.
        has: whether every image has it, `(N, M)`; NaN where the property is unknown.
    """

    measured: Floats
    named: tuple[tuple[str, str], ...]
    has: Floats

    @property
    def unknown(self) -> int:
        """How many images could not be measured."""
        return int(np.isnan(self.measured).all(1).sum())


def measure_images(
    dataset: Any, column: str, indices: Sequence[int], labels: Sequence[str], *, progress: bool = False
) -> Properties:
    """Measure the images of a dataset at `indices`, each with the class name `labels`.

    A file's own properties are those of what the dataset holds: an image that was opened by a transform has no
    quality or folder. A folder that only repeats the class is not a property.
    """
    feature = (getattr(dataset, "features", None) or {}).get(column)
    # A transform of the dataset gets the images opened, as it expects.
    if isinstance(feature, ImageFeature) and feature.decode and dataset.format["type"] is None:
        dataset = dataset.cast_column(column, ImageFeature(mode=feature.mode, decode=False))
    measured = np.full((len(indices), len(MEASURED)), np.nan)
    named: list[dict[str, str]] = []
    paths: list[str | None] = []
    for row, index in enumerate(tqdm(indices, desc="Measuring images", unit=" images", disable=not progress)):
        path, own = None, {}
        # Unreadable images are reported where they are embedded; whatever is wrong with them, they have no properties.
        with suppress(Exception):
            path, image = _opened(dataset[index][column])
            own = _named_of(image)
            measured[row] = _measured(image)
        named.append(own)
        paths.append(path)
    for own, folders in zip(named, _folders(paths, labels), strict=True):
        own |= folders
    return Properties(measured, *_indicators(named))


def _opened(raw: Any) -> tuple[str | None, Image.Image]:
    if not isinstance(raw, Mapping):
        path = getattr(raw, "filename", None) or None
        return path, raw if isinstance(raw, Image.Image) else as_rgb(raw)
    path, content = raw.get("path"), raw.get("bytes")
    if content is None and not os.path.isfile(str(path)):
        # At an address, or in an archive.
        return path, ImageFeature().decode_example(raw)
    return path, Image.open(io.BytesIO(content) if content is not None else str(path))


def _measured(image: Image.Image) -> list[float]:
    """The numbers of `MEASURED`; what a file says is read before its pixels are."""
    width, height = upright_size(image)
    quality = jpeg_quality(image)
    image.draft("RGB", (_SIDE, _SIDE))
    rgb = as_rgb(image)
    rgb.thumbnail((_SIDE, _SIDE))
    pixels = np.asarray(rgb, dtype=np.float64)
    luma = pixels @ (0.299, 0.587, 0.114) / 255
    return [
        float(luma.mean()),
        float(luma.std()),
        _sharpness(luma),
        _colorfulness(pixels / 255),
        float((pixels[..., 0] - pixels[..., 2]).mean() / 255),
        float(np.sqrt(width * height)),
        width / height,
        _border(pixels),
        quality,
    ]


def jpeg_quality(image: Image.Image) -> float:
    """The quality from 1 to 100 that an encoder of the Independent JPEG Group had, by an image's quantization tables.

    NaN for other formats.
    """
    tables = getattr(image, "quantization", None)
    if not tables:
        return float("nan")
    own, standard = np.array(tables[min(tables)]), _standard_table()
    # Larger entries than these are cut.
    exact = own < 255
    scale = 100 * own[exact].sum() / standard[exact].sum() if exact.any() else np.inf
    return float(np.clip((200 - scale) / 2 if scale <= 100 else 5000 / scale, 1, 100))


@cache
def _standard_table() -> Ints:
    """The luminance table of the JPEG standard, which encoders scale by the quality; at 50 it is used as it is."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG", quality=50)
    tables: Any = getattr(Image.open(buffer), "quantization")  # noqa: B009
    return np.array(tables[0])


def _sharpness(luma: Floats) -> float:
    """How much of the contrast is between neighbors: the deviation of the Laplacian over that of the image."""
    if min(luma.shape) < 3 or luma.std() < 1e-3:
        return float("nan")
    inner = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * inner
    return float(laplacian.std() / luma.std())


def _colorfulness(pixels: Floats) -> float:
    """Source: Hasler and Suesstrunk, Measuring colorfulness in natural images, 2003."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    return float(np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean()))


def _border(pixels: Floats) -> float:
    """The fraction of the image in rows and columns at its edges along which the color does not change."""
    height, width, _ = pixels.shape
    flat_rows, flat_columns = ((np.ptp(pixels, axis=axis) <= _FLAT).all(-1) for axis in (1, 0))
    if flat_rows.all() or flat_columns.all():
        return 1.0
    top, bottom, left, right = map(_leading, (flat_rows, flat_rows[::-1], flat_columns, flat_columns[::-1]))
    # Along the edge of a frame the color changes where the frame ends; the inside of a bar at the top counts as well.
    inner = pixels[top : height - bottom, left : width - right]
    return 1 - inner.shape[0] * inner.shape[1] / (height * width)


def _leading(flags: NDArray[np.bool_]) -> int:
    return int(np.argmin(flags))


def _named_of(image: Image.Image) -> dict[str, str]:
    """File type, camera and month of an image."""
    found = {_FILE_TYPE: image.format} if image.format else {}
    exif = image.getexif()
    camera = " ".join(str(exif[tag]).strip("\0 ") for tag in (_MAKE, _MODEL) if tag in exif)
    taken = str(exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_DATE) or "")
    date = taken[:7].replace(":", "-")
    if image.format:
        found[_CAMERA] = camera or "no camera"
        found[_MONTH] = date if date[:4].isdigit() else "no date"
    return found


def _folders(paths: Sequence[str | None], labels: Sequence[str]) -> list[dict[str, str]]:
    """The folders of every file below the one that all are in, by level, without those that repeat its class."""
    parts = [PurePath(path).parts[:-1] if path and os.path.basename(path) != path else () for path in paths]
    levels = zip(*(own for own in parts if own), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    below = [own[shared:] for own in parts]
    found: list[dict[str, str]] = [{} for _ in parts]
    used = 0
    for level in range(max(map(len, below), default=0)):
        names = [own[level] if level < len(own) else None for own in below]
        pairs = {(name, label) for name, label in zip(names, labels, strict=True)}
        if len(pairs) == len({name for name, _ in pairs}) and len(pairs) == len({label for _, label in pairs}):
            # One folder per class, whatever their names.
            continue
        used += 1
        for own, name, label in zip(found, names, labels, strict=True):
            if name is not None and readable(name).lower() != readable(label).lower():
                own[f"folder, level {used}" if used > 1 else "folder"] = name
    return found


def _indicators(named: Sequence[Mapping[str, str]]) -> tuple[tuple[tuple[str, str], ...], Floats]:
    """The frequent values of properties without an order, and which images have them."""
    columns: list[tuple[str, str]] = []
    values: list[Floats] = []
    for name in sorted({name for own in named for name in own}):
        counts = Counter(own[name] for own in named if name in own)
        common = [value for value, count in counts.most_common(_MOST_VALUES) if count >= _FEWEST]
        if len(counts) < 2:
            continue
        for value in common:
            columns.append((name, value))
            values.append(np.array([own[name] == value if name in own else np.nan for own in named], dtype=np.float64))
    return tuple(columns), np.stack(values, 1) if values else np.empty((len(named), 0))
