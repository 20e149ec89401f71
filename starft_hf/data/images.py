"""Preprocessing of images: random crops that belong to the sample, then the model's own image processor."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from starft_hf.data.randomness import global_generators_from


ImageTransform = Callable[[Image.Image], Image.Image | Tensor]

# The usual range of aspect ratios of a random resized crop.
CROP_RATIO = (3 / 4, 4 / 3)


def random_crop_box(
    width: int, height: int, scale: Sequence[float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random box `(left, top, right, bottom)`, in pixels, as of a random resized crop.

    Its share of the area is uniform in `scale`, its aspect ratio log-uniform in `CROP_RATIO`. After ten boxes that do
    not fit, the whole image is taken.
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


# Image processors hold several copies of what they are given; of a large batch that would be more than training takes.
_AT_ONCE = 32


class ImagePreprocessor:
    """Turns images into what the vision tower takes.

    Args:
        image_processor: the model's image processor.
        crop_scale: share of the area a random crop keeps, or None for the processor's preprocessing alone.
        transform: the user's own transform, from a PIL image to a PIL image or to a tensor `(C, H, W)`. It replaces
            the random crop; what it draws from the global generators is keyed to the sample.
    """

    def __init__(
        self,
        image_processor: Any,
        crop_scale: Sequence[float] | None = None,
        transform: ImageTransform | None = None,
    ):
        self.image_processor = image_processor
        self.crop_scale = crop_scale
        self.transform = transform
        self.size = fixed_size(image_processor)

    @property
    def deterministic(self) -> bool:
        """Whether an image always gives the same tensors."""
        return self.crop_scale is None and self.transform is None

    def __call__(
        self, images: Sequence[Any], generators: Sequence[np.random.Generator] | None = None
    ) -> list[dict[str, Tensor]]:
        """Preprocess `images`; `generators`, one per image, are needed where preprocessing is random.

        Returns:
            For every image the tensors the vision tower takes, without a batch dimension.
        """
        return self.of_pictures([as_rgb(image) for image in images], generators)

    def of_pictures(
        self, pictures: Sequence[Any], generators: Sequence[np.random.Generator] | None = None
    ) -> list[dict[str, Tensor]]:
        """The same for upright RGB pictures."""
        if not self.deterministic:
            if generators is None:
                raise ValueError("random preprocessing needs one generator per image")
            pictures = [self._augment(*pair) for pair in zip(pictures, generators, strict=True)]
        if pictures and isinstance(pictures[0], Tensor):
            return [{"pixel_values": picture} for picture in pictures]
        examples: list[dict[str, Tensor]] = []
        for start in range(0, len(pictures), _AT_ONCE):
            features = self.image_processor(images=pictures[start : start + _AT_ONCE], return_tensors="pt")
            examples += [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
        return examples

    def check(self, picture: Image.Image) -> None:
        """Check that a picture can be brought to the size of the vision tower.

        Raises:
            ValueError: if it would take more pixels on the way than a picture may have. That is so for very long ones
                where the shortest edge is scaled to a given length.
        """
        size = getattr(self.image_processor, "size", None)
        edge = dict(size).get("shortest_edge") if size else None
        limit = Image.MAX_IMAGE_PIXELS
        if edge and limit and edge**2 * max(picture.size) / min(picture.size) > limit:
            raise ValueError(
                f"it has {picture.width} x {picture.height} pixels, and scaling its shortest edge to {edge} would "
                f"give more than {limit} (PIL.Image.MAX_IMAGE_PIXELS)"
            )

    def _augment(self, image: Image.Image, generator: np.random.Generator) -> Image.Image | Tensor:
        if self.transform is not None:
            with global_generators_from(generator):
                return self.transform(image)
        assert self.crop_scale is not None
        box = random_crop_box(*image.size, self.crop_scale, generator)
        if self.size is None:
            return image.crop(box)
        return image.resize(self.size, Image.Resampling.BICUBIC, box=box)


def fixed_size(image_processor: Any) -> tuple[int, int] | None:
    """The `(width, height)` in pixels that `image_processor` brings every image to, or None if it keeps shapes."""
    for attribute in ("crop_size", "size"):
        if attribute == "crop_size" and not getattr(image_processor, "do_center_crop", False):
            continue
        size = getattr(image_processor, attribute, None)
        size = dict(size) if size else {}
        if size.get("height") and size.get("width"):
            return size["width"], size["height"]
    return None


def as_rgb(image: Any) -> Image.Image:
    """`image` as an RGB picture, upright; arrays are read as `(H, W)` or `(H, W, C)` of unsigned bytes.

    What is transparent takes the colour stored under it. Pictures of 16 bits are brought to 8.

    Raises:
        TypeError: if it is neither a PIL image nor such an array.
        ValueError: if it has no pixels.
    """
    if isinstance(image, np.ndarray) and image.size == 0:
        raise ValueError(f"it is an array of shape {image.shape}, without any pixels")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"an image is of type {type(image).__name__}; expected a PIL image or an array of unsigned bytes. "
            "Cast the column to datasets.Image(), or give the data set a transform that opens its files."
        )
    if not all(image.size):
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    # Cameras write down how they were held instead of turning the picture.
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # PIL would cut everything above 255 off. Values beyond 16 bits do not come out of image files.
        return Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) // 2**8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise TypeError(
            "an image holds floating-point numbers, whose range is unknown; convert it to 8 bits, for example with "
            "Image.fromarray((array * 255).astype('uint8'))"
        )
    # Palettes may have transparent entries, which PIL wants to be told of.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def stack_features(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several images with a batch dimension."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
