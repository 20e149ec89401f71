"""Preprocessing of images: random crops keyed to the sample, then the model's image processor.

A photo has far more pixels than a model sees. With `image_decoding="scaled"` it is decoded at a size that is still at
least twice what its crop needs: JPEGs by their decoder, others by averaging pixels, as Pillow's `reducing_gap` does.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from starft_hf.data.randomness import global_generators_from
from starft_hf.data.rgb import ScaledImage, as_rgb, upright_size
from starft_hf.models.pixels import byte_values, is_of_transformers, prepared_bytes
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

ImageTransform = Callable[[Image.Image], Image.Image | Tensor]

SCALED, FULL = "scaled", "full"
IMAGE_DECODING = (SCALED, FULL)

# The usual range of aspect ratios of a random resized crop.
CROP_RATIO = (3 / 4, 4 / 3)

# How many times the pixels that it needs a resized image is made of, in width and height: with fewer, what a decoder
# or an average leaves out would be seen.
_GAP = 2.0

# The largest reduction of JPEG decoders, as a power of 2.
_MOST_HALVINGS = 3


def check_image_decoding(choice: str) -> None:
    """Check a value of `image_decoding`."""
    if choice not in IMAGE_DECODING:
        raise ValueError(unknown_name("image_decoding", choice, IMAGE_DECODING))


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


# Image processors hold several copies of their inputs; for a large batch they would need more memory than training.
_AT_ONCE = 32


class ImagePreprocessor:
    """Turns images into inputs of the vision tower.

    A random crop keeps a fraction of the area in the range `crop_scale`; None only applies the image processor. A
    user's own `transform` replaces the random crop: to an image, which the image processor then prepares, or to a
    tensor `(C, H, W)` of normalized floats, which is not prepared further. What it draws from the global generators is
    keyed to the sample.

    With `decoding="scaled"` images are read as small as that allows; for a `transform`, and for image processors that
    are not of transformers, in full, because what these need of an image is not known.
    """

    def __init__(
        self,
        image_processor: Any,
        crop_scale: Sequence[float] | None = None,
        transform: ImageTransform | None = None,
        decoding: str = SCALED,
    ):
        check_image_decoding(decoding)
        self.image_processor = image_processor
        self.crop_scale = crop_scale
        self.transform = transform
        self.decoding = decoding
        self.size = fixed_size(image_processor)
        # Whether the warning about tensors that are not normalized was given, in memory that worker processes share.
        self._warned = torch.zeros((), dtype=torch.bool).share_memory_()

    @property
    def deterministic(self) -> bool:
        """Whether an image always gives the same tensors."""
        return self.crop_scale is None and self.transform is None

    @property
    def gap(self) -> float | None:
        """How many times the pixels that it needs a resized image is made of at least; None is all there are."""
        return _GAP if self.decoding == SCALED else None

    def __call__(
        self, images: Sequence[Any], generators: Sequence[np.random.Generator] | None = None
    ) -> list[dict[str, Tensor]]:
        """Unbatched inputs of the vision tower for every image; random preprocessing needs a generator per image.

        Images are bytes `(3, H, W)` where `as_bytes`, and as the image processor or the transform returns them if not.
        """
        return self.of_scaled([self.read(image) for image in images], generators)

    def of_scaled(
        self, images: Sequence[ScaledImage], generators: Sequence[np.random.Generator] | None = None
    ) -> list[dict[str, Tensor]]:
        """The same for images that `read` has read."""
        prepared: list[Image.Image | Tensor]
        if self.deterministic:
            prepared = [self._resized(image) for image in images]
        else:
            if generators is None:
                raise ValueError("random preprocessing needs one generator per image")
            prepared = [self._augment(*pair) for pair in zip(images, generators, strict=True)]
        if any(isinstance(image, Tensor) for image in prepared):
            self._check_tensors(prepared)
            return [{"pixel_values": image} for image in prepared if isinstance(image, Tensor)]
        done = [image.is_final or self._is_prepared(made) for image, made in zip(images, prepared, strict=True)]
        rest = self._of_processor([made for made, is_done in zip(prepared, done, strict=True) if not is_done])
        return [
            {"pixel_values": _as_tensor(made)} if is_done else next(rest)
            for made, is_done in zip(prepared, done, strict=True)
        ]

    def _of_processor(self, images: Sequence[Any]) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(images), _AT_ONCE):
            part = images[start : start + _AT_ONCE]
            if self.as_bytes:
                yield from ({"pixel_values": values} for values in prepared_bytes(self.image_processor, part))
            else:
                features = self.image_processor(images=part, return_tensors="pt")
                yield from (dict(zip(features, row, strict=True)) for row in zip(*features.values(), strict=True))

    @cached_property
    def as_bytes(self) -> bool:
        """Whether images are bytes `(3, H, W)`, for `DualEncoder.normalized`, rather than normalized floats."""
        return byte_values(self.image_processor) is not None

    @cached_property
    def _keeps_size(self) -> bool:
        """Whether all that the image processor does to an image of its size is to make a tensor of it."""
        if not self.as_bytes or self.size is None:
            return False
        noise = np.random.default_rng(0).integers(0, 256, (*self.size[::-1], 3), dtype=np.uint8)
        probe = Image.fromarray(noise)
        return torch.equal(prepared_bytes(self.image_processor, [probe])[0], _as_tensor(probe))

    def _is_prepared(self, image: Any) -> bool:
        # A crop of our own has the size that the vision tower takes; a processor that first makes images larger than
        # that would enlarge it, and cut its border off.
        is_final = self.as_bytes if self.crop_scale is not None and self.transform is None else self._keeps_size
        return is_final and image.size == self.size

    @cached_property
    def _resizes_as_it_says(self) -> bool:
        """Whether the image processor resizes to its `size`, rather than by `crop_pct` or a factor of its class."""
        if not is_of_transformers(self.image_processor):
            return False
        probe = Image.fromarray(np.zeros((120, 90, 3), dtype=np.uint8))
        try:
            found = prepared_bytes(self.image_processor, [probe], do_center_crop=False)
        except (ArithmeticError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False
        return tuple(found.shape[:1:-1]) == _size_to_resize(self.image_processor, *probe.size)

    def _resized_size(self, width: int, height: int) -> tuple[int, int] | None:
        """The `(width, height)` that an image is resized to, before its crop; None where it is unknown."""
        return _size_to_resize(self.image_processor, width, height) if self._resizes_as_it_says else None

    def read(self, image: Any, *, mode: str | None = None, is_own: bool = False) -> ScaledImage:
        """`image` as an upright RGB image, scaled as far as what it is for allows.

        Args:
            image: a PIL image, an array or a tensor.
            mode: the mode of PIL to convert it to first.
            is_own: whether it was opened for this alone. Then its decoder may scale it, which changes the object.

        Raises:
            TypeError: if it is not an image.
            ValueError: if it is too large, even if scaled.
        """
        drafted = 1
        size = upright_size(image) if is_own else None
        if size is not None and (halvings := min(_MOST_HALVINGS, self._reduction(*size).bit_length() - 1)):
            width, smaller = image.width, (image.width >> halvings, image.height >> halvings)
            if (made := image.draft(None, smaller)) is not None:
                drafted = round(width / made[1][2])
        if is_own:
            # Its file may be closed before it is used.
            image.load()
        if mode is not None and image.mode != mode:
            image = image.convert(mode)
        rgb = as_rgb(image, copy=not is_own)
        size = size or rgb.size
        self._check_size(*size)
        if (factor := self._reduction(*size) // drafted) > 1:
            rgb = rgb.reduce(factor)
        scale = 1 / (drafted * max(factor, 1))
        return ScaledImage(rgb, size, (scale, scale))

    def _reduction(self, width: int, height: int) -> int:
        """How many pixels of an image, in width and in height, its decoding may make one of."""
        may_scale = self.decoding == SCALED and self.transform is None and min(width, height) > 0
        part = self.smallest_part(width, height) if may_scale else None
        if part is None:
            return 1
        (part_width, part_height), (to_width, to_height) = part
        return max(1, int(min(part_width / to_width, part_height / to_height) / _GAP))

    def smallest_part(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The size of the smallest part of an image that may be resized, and what to; None where that is unknown."""
        if self.deterministic:
            size = self._resized_size(width, height)
            return None if size is None else ((width, height), size)
        if self.size is None:
            return None
        # Of `random_crop_box`: the smallest area at the most extreme aspect ratio, or else the whole image.
        edge = max(1, int(math.sqrt(width * height * (self.crop_scale or (1.0,))[0] * CROP_RATIO[0])))
        return (min(width, edge), min(height, edge)), self.size

    def _resized(self, image: ScaledImage) -> Image.Image:
        """A scaled image, resized as the image processor does from the size before; others are left to it."""
        size = self._resized_size(*image.size) if image.image.size != image.size else None
        if size is None or image.is_final:
            return image.image
        return image.resized(size, _filter_of(self.image_processor), self.gap)

    def _check_size(self, width: int, height: int) -> None:
        """Check that resizing does not exceed Pillow's limit of pixels, as for very long images."""
        edge = dict(getattr(self.image_processor, "size", None) or {}).get("shortest_edge")
        limit = Image.MAX_IMAGE_PIXELS
        if edge and limit and edge**2 * max(width, height) / min(width, height) > limit:
            raise ValueError(
                f"it has {width} x {height} pixels, and scaling its shortest edge to {edge} would give more than "
                f"{limit} (PIL.Image.MAX_IMAGE_PIXELS)"
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
        logger.info_once("image_transform returns floats, which are sent to the device as they are.")
        normalizes = getattr(self.image_processor, "do_normalize", False)
        if normalizes and not self._warned and all(image.min() >= 0 and image.max() <= 1 for image in images):
            self._warned.fill_(True)
            logger.warning(
                "image_transform returns tensors with values from 0 to 1 only, which do not seem to be normalized as "
                "the model expects; %s. This warning is given once.",
                advice,
            )

    def _augment(self, image: ScaledImage, generator: np.random.Generator) -> Image.Image | Tensor:
        if self.transform is not None:
            with global_generators_from(generator):
                made = self.transform(image.image)
            try:
                return made if isinstance(made, Tensor) else as_rgb(made)
            except (TypeError, ValueError) as error:
                raise type(error)(f"image_transform does not return an image: {error}") from error
        assert self.crop_scale is not None
        box = random_crop_box(*image.size, self.crop_scale, generator)
        if self.size is None:
            return image.image.crop(box)
        return image.cropped(self.size, box)


def _as_tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def fixed_size(image_processor: Any) -> tuple[int, int] | None:
    """The `(width, height)` in pixels of every image that `image_processor` returns, or None if it keeps shapes."""
    crop = ["crop_size"] if getattr(image_processor, "do_center_crop", False) else []
    for attribute in [*crop, "size"]:
        size = dict(getattr(image_processor, attribute, None) or {})
        if size.get("height") and size.get("width"):
            return size["width"], size["height"]
    return None


def _size_to_resize(image_processor: Any, width: int, height: int) -> tuple[int, int] | None:
    """The `(width, height)` that an image processor says it resizes an image to, before its crop, if it does."""
    if not getattr(image_processor, "do_resize", False):
        return None
    size = {name: value for name, value in dict(image_processor.size or {}).items() if value}
    if size.keys() == {"height", "width"}:
        return size["width"], size["height"]
    if size.keys() != {"shortest_edge"}:
        return None
    edge, short = size["shortest_edge"], min(width, height)
    return int(edge * width / short), int(edge * height / short)


def _filter_of(image_processor: Any) -> Image.Resampling:
    resample = getattr(image_processor, "resample", None)
    return Image.Resampling(resample) if isinstance(resample, int) else Image.Resampling.BICUBIC


def stack_features(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several images with a batch dimension."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
