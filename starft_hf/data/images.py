"""Preprocessing of images: random crops keyed to the sample, then the model's image processor."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.utils import logging

from starft_hf.data.randomness import global_generators_from


logger = logging.get_logger(__name__)

ImageTransform = Callable[[Image.Image], Image.Image | Tensor]

# The usual range of aspect ratios of a random resized crop.
CROP_RATIO = (3 / 4, 4 / 3)


def random_crop_box(
    width: int, height: int, scale: Sequence[float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """The box `(left, top, right, bottom)`, in pixels, of a random resized crop.

    The fraction of the area that it keeps is uniform in `scale`, its aspect ratio log-uniform in `CROP_RATIO`. If ten
    boxes do not fit, the box is the whole image.
    """
    for _ in range(10):
        area = width * height * generator.uniform(scale[0], scale[1])
        ratio = math.exp(generator.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.integers(width - crop_width + 1))
            top = int(generator.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    return 0, 0, width, height


# The last dimension of an array with channels: gray, gray with transparency, RGB, RGBA.
_CHANNELS = (1, 2, 3, 4)

# Image processors hold several copies of their inputs; for a large batch they would need more memory than training.
_AT_ONCE = 32


class ImagePreprocessor:
    """Turns images into inputs of the vision tower.

    A random crop keeps a fraction of the area in the range `crop_scale`; None only applies the image processor. A
    user's own `transform` replaces the random crop: to an image, which the image processor then prepares, or to a
    tensor `(C, H, W)` of normalized floats, which is not prepared further. What it draws from the global generators is
    keyed to the sample.
    """

    def __init__(
        self, image_processor: Any, crop_scale: Sequence[float] | None = None, transform: ImageTransform | None = None
    ):
        self.image_processor = image_processor
        self.crop_scale = crop_scale
        self.transform = transform
        self.size = fixed_size(image_processor)
        # Whether the warning about tensors that are not normalized was given, in memory that worker processes share.
        self._warned = torch.zeros((), dtype=torch.bool).share_memory_()

    @property
    def deterministic(self) -> bool:
        """Whether an image always gives the same tensors."""
        return self.crop_scale is None and self.transform is None

    def __call__(
        self, images: Sequence[Any], generators: Sequence[np.random.Generator] | None = None
    ) -> list[dict[str, Tensor]]:
        """Unbatched inputs of the vision tower for every image; random preprocessing needs a generator per image."""
        return self.of_rgb([as_rgb(image) for image in images], generators)

    def of_rgb(
        self, images: Sequence[Any], generators: Sequence[np.random.Generator] | None = None
    ) -> list[dict[str, Tensor]]:
        """The same for upright RGB images."""
        if not self.deterministic:
            if generators is None:
                raise ValueError("random preprocessing needs one generator per image")
            images = [self._augment(*pair) for pair in zip(images, generators, strict=True)]
        if any(isinstance(image, Tensor) for image in images):
            self._check_tensors(images)
            return [{"pixel_values": image} for image in images]
        examples: list[dict[str, Tensor]] = []
        for start in range(0, len(images), _AT_ONCE):
            features = self.image_processor(images=images[start : start + _AT_ONCE], return_tensors="pt")
            examples += [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
        return examples

    def check(self, image: Image.Image) -> None:
        """Check that resizing does not exceed Pillow's limit of pixels, as for very long images."""
        edge = dict(getattr(self.image_processor, "size", None) or {}).get("shortest_edge")
        limit = Image.MAX_IMAGE_PIXELS
        if edge and limit and edge**2 * max(image.size) / min(image.size) > limit:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, and scaling its shortest edge to {edge} would give "
                f"more than {limit} (PIL.Image.MAX_IMAGE_PIXELS)"
            )

    def _check_tensors(self, images: Sequence[Any]) -> None:
        """Check tensors that `transform` returned, which the vision tower gets as they are."""
        mean, std = (getattr(self.image_processor, f"image_{name}", None) for name in ("mean", "std"))
        advice = (
            "return a PIL image, which the image processor prepares, or end the transform with "
            f"ToDtype(torch.float32, scale=True) and Normalize({mean}, {std})"
        )
        for image in images:
            if not isinstance(image, Tensor):
                raise TypeError("image_transform returns tensors for some images only; return one kind for all")
            if not image.is_floating_point():
                raise TypeError(
                    f"image_transform returns a tensor of {image.dtype}, which is not normalized; {advice}"
                )
            if image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(f"image_transform returns a tensor of shape {tuple(image.shape)}, not (3, H, W)")
        normalizes = getattr(self.image_processor, "do_normalize", False)
        if normalizes and not self._warned and all(image.min() >= 0 and image.max() <= 1 for image in images):
            self._warned.fill_(True)
            logger.warning(
                "image_transform returns tensors with values from 0 to 1 only, which do not seem to be normalized as "
                "the model expects; %s. This warning is given once.",
                advice,
            )

    def _augment(self, image: Image.Image, generator: np.random.Generator) -> Image.Image | Tensor:
        if self.transform is not None:
            with global_generators_from(generator):
                made = self.transform(image)
            try:
                return made if isinstance(made, Tensor) else as_rgb(made)
            except (TypeError, ValueError) as error:
                raise type(error)(f"image_transform does not return an image: {error}") from error
        assert self.crop_scale is not None
        box = random_crop_box(*image.size, self.crop_scale, generator)
        if self.size is None:
            return image.crop(box)
        return image.resize(self.size, Image.Resampling.BICUBIC, box=box)


def fixed_size(image_processor: Any) -> tuple[int, int] | None:
    """The `(width, height)` in pixels of every image that `image_processor` returns, or None if it keeps shapes."""
    crop = ["crop_size"] if getattr(image_processor, "do_center_crop", False) else []
    for attribute in [*crop, "size"]:
        size = dict(getattr(image_processor, attribute, None) or {})
        if size.get("height") and size.get("width"):
            return size["width"], size["height"]
    return None


def as_rgb(image: Any) -> Image.Image:
    """`image` as an upright RGB image.

    Arrays and tensors are `(H, W)`, `(H, W, C)` or `(C, H, W)`, of integers from 0 to 255 or floats from 0 to 1.
    Transparent pixels get the color that is stored for them. Images of 16 bits are converted to 8.
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
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # PIL would clip values above 255. Image files do not hold values of more than 16 bits.
        return Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) // 2**8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise TypeError(
            "an image holds floating-point numbers, whose range is unknown; convert it to 8 bits, for example with "
            "Image.fromarray((array * 255).astype('uint8'))"
        )
    # PIL warns about palettes with transparent entries unless they are converted to RGBA first.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


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


def stack_features(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several images with a batch dimension."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
