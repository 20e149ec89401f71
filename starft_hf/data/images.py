"""Preprocessing of images: random crops keyed to the sample, then the model's image processor."""

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
    user's own `transform`, to a PIL image or to a tensor `(C, H, W)`, replaces the random crop; what it draws from the
    global generators is keyed to the sample.
    """

    def __init__(
        self, image_processor: Any, crop_scale: Sequence[float] | None = None, transform: ImageTransform | None = None
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
        if images and isinstance(images[0], Tensor):
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
    """The `(width, height)` in pixels of every image that `image_processor` returns, or None if it keeps shapes."""
    crop = ["crop_size"] if getattr(image_processor, "do_center_crop", False) else []
    for attribute in [*crop, "size"]:
        size = dict(getattr(image_processor, attribute, None) or {})
        if size.get("height") and size.get("width"):
            return size["width"], size["height"]
    return None


def as_rgb(image: Any) -> Image.Image:
    """`image` as an upright RGB image; arrays are `(H, W)` or `(H, W, C)` of unsigned bytes.

    Transparent pixels get the color that is stored for them. Images of 16 bits are converted to 8.
    """
    if isinstance(image, np.ndarray) and image.size == 0:
        raise ValueError(f"it is an array of shape {image.shape}, without any pixels")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"an image is of type {type(image).__name__}; expected a PIL image or an array of unsigned bytes. "
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


def stack_features(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several images with a batch dimension."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
