"""Images of every kind, as upright RGB images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The last dimension of an array with channels: gray, gray with transparency, RGB, RGBA.
_CHANNELS = (1, 2, 3, 4)

_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
# A camera's sensor of 12 bits, whose values are often written to files of 16.
_TWELVE_BITS = 2**12


@dataclass(frozen=True)
class ScaledImage:
    """An upright RGB image, which may have been decoded smaller than it is.

    Attributes:
        image: the image as decoded.
        size: its width and height before it was scaled, which crops are drawn from.
        scale: the width and height of one of the pixels of that size, in pixels of `image`.
        is_final: whether `image` is what the image processor makes of it already, in all but its values.
    """

    image: Image.Image
    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    is_final: bool = False

    def cropped(self, size: tuple[int, int], box: Sequence[int]) -> Image.Image:
        """The part `(left, top, right, bottom)` of the image, in pixels of `size`, resized with a bicubic filter.

        It is rounded to whole pixels of `image`. By torch, in a third to a half of Pillow's time; values differ by a
        hundredth of a level on average.
        """
        left, top, right, bottom = self._whole(box)
        pixels = torch.from_numpy(np.asarray(self.image)[top:bottom, left:right].copy()).permute(2, 0, 1)
        resized = F.interpolate(pixels[None], size[::-1], mode="bicubic", antialias=True)[0]
        return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())

    def _whole(self, box: Sequence[int]) -> tuple[int, int, int, int]:
        (x, y), (width, height) = self.scale, self.image.size
        left, top = min(round(box[0] * x), width - 1), min(round(box[1] * y), height - 1)
        return left, top, max(left + 1, min(round(box[2] * x), width)), max(top + 1, min(round(box[3] * y), height))

    def resized(self, size: tuple[int, int], resample: Image.Resampling, gap: float | None) -> Image.Image:
        """The whole image, resized by Pillow; `gap` is its `reducing_gap`."""
        (x, y), (width, height) = self.scale, self.image.size
        # A decoder rounds sizes up, and what is left of rounding must not reach beyond the last pixel.
        box = (0.0, 0.0, min(self.size[0] * x, width), min(self.size[1] * y, height))
        return self.image.resize(size, resample, box=box, reducing_gap=gap)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """The width and height of an image once it is upright, which need not be decoded for it."""
    if image.getexif().get(_ORIENTATION, 1) not in (5, 6, 7, 8):
        return image.size
    # Of TIFF, recent versions of Pillow give the size once it is upright, before it is.
    stored: Any = getattr(image, "tag_v2", {})
    return stored.get(_HEIGHT, image.height), stored.get(_WIDTH, image.width)


def as_rgb(image: Any, copy: bool = True) -> Image.Image:
    """`image` as an upright RGB image; one that is that already is itself the result unless `copy`.

    Arrays and tensors are `(H, W)`, `(H, W, C)` or `(C, H, W)`, of integers from 0 to 255 or floats from 0 to 1.
    Transparent pixels get the color that is stored for them. Images of 16 bits are converted to 8; of those of 32
    bits, values up to 255 stay as they are.
    """
    if not isinstance(image, Image.Image) and (hasattr(image, "__array__") or isinstance(image, list)):
        image = Image.fromarray(_as_bytes(image))
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"an image is of type {type(image).__name__}; expected a PIL image, an array or a tensor. "
            "Cast the column to datasets.Image(), or give the dataset a transform that opens its files."
        )
    if not all(image.size):
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    # Cameras store their orientation instead of rotating the image.
    if copy or image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image), image)).convert("RGB")
    if image.mode == "F":
        raise TypeError(
            "an image holds floating-point numbers, whose range is unknown; convert it to 8 bits, for example with "
            "Image.fromarray((array * 255).astype('uint8'))"
        )
    # PIL warns about palettes with transparent entries unless they are converted to RGBA first.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _eight_bits(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Integers of 16 or 32 bits as bytes, where PIL would clip those above 255."""
    low, high = int(values.min()), int(values.max())
    # Some versions of Pillow open PNG of 16 bits as images of 32.
    is_wide = image.mode == "I" and image.format != "PNG"
    if high >= 2**16 or low < 0:
        raise TypeError(f"an image holds integers from {low} to {high}; convert them to bytes, from 0 to 255")
    if is_wide and high < 2**8:
        return values.astype(np.uint8)
    if 2**8 <= high < _TWELVE_BITS:
        logger.warning_once(
            f"An image of {'32' if is_wide else '16'} bits has values up to {high} only, and is nearly black in 8 "
            "bits. If its camera has 12 bits, convert all images before, for example with array // 16. This warning "
            "is given once."
        )
    return (values // 2**8).astype(np.uint8)


def _as_bytes(values: Any) -> np.ndarray:
    """An array, tensor or nested list as unsigned bytes, `(H, W)` or `(H, W, C)`."""
    is_tensor = isinstance(values, Tensor)
    if is_tensor:
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    array = np.asarray(values)
    if array.size == 0:
        raise ValueError(f"it is an array of shape {array.shape}, without any pixels")
    # Where both ends could be the channels, they come first in tensors and last in arrays.
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and (is_tensor or array.shape[2] not in _CHANNELS):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in _CHANNELS):
        raise TypeError(
            f"an image is an array of shape {array.shape}; expected (H, W), or (H, W, C) or (C, H, W) with up to 4 "
            "channels"
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an image is an array of dtype {array.dtype}; expected unsigned bytes")
    low, high = array.min(), array.max()
    if array.dtype.kind in "bf" and low >= 0 and high <= 1:
        return (array * 255.0).round().astype(np.uint8)
    if array.dtype.kind == "f":
        raise TypeError(
            f"an image holds floating-point numbers from {low:.3g} to {high:.3g}, which are not from 0 to 1. The "
            "image processor normalizes images itself: pass them as they were before that, without a transform of the "
            "dataset that does it, or convert those from 0 to 255 with image.round().astype('uint8')"
        )
    if low < 0 or high > 255:
        raise TypeError(f"an image holds integers from {low} to {high}; convert them to bytes, from 0 to 255")
    return array.astype(np.uint8)


def content_hash(image: Image.Image) -> int:
    """A hash of an image's size and pixels, as decoded, of 63 bits."""
    pixels = np.asarray(image)
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1
