"""What an image processor does to an image, as a few values that Pillow and NumPy suffice for."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from starft_hf.models.pixels import byte_values, prepared_bytes


# Sizes of the images that a description is tried on: smaller and larger than most models see, wide and high.
_PROBES = ((13, 17), (90, 120), (301, 77), (640, 480))
_SIDES = ("width", "height")
# How many levels of 256 the bytes of other backends may differ by, which round a resized image otherwise than Pillow.
_LEVELS = 3
# Configurations give means with eight digits, and float32 has seven.
_DIGITS = 7


def preprocessing_of(image_processor: Any) -> dict[str, Any]:
    """What `image_processor` does to an RGB image, in this order, as `preprocessing.json` holds it.

    Returns:
        "resize": {"shortest_edge": pixels}, which keeps the aspect ratio, {"width": ..., "height": ...}, or None;
        "interpolation": the filter of Pillow for it; "crop": {"width": ..., "height": ...} of the center, or None;
        "rescale": what bytes are multiplied by; "mean" and "std": what is then subtracted from each channel, and what
        that is divided by; "shape": channels, height and width of the result.

    Raises:
        ValueError: if it does anything else.
    """
    name = type(image_processor).__name__
    problem = f"the {name} does more to an image than to resize, crop, rescale and normalize it"
    blank = image_processor(images=[Image.new("RGB", (64, 48))], return_tensors="pt")["pixel_values"]
    if blank.ndim != 4:
        raise ValueError(
            f"the {name} turns an image into {' x '.join(map(str, blank.shape[1:]))} values of patches, and what is "
            "exported takes pixel_values of shape (batch, 3, height, width); export a model whose images all have one "
            "size, such as CLIP or SigLIP"
        )
    values = byte_values(image_processor)
    resize, crop = _sizes(image_processor, "do_resize", "size"), _sizes(image_processor, "do_center_crop", "crop_size")
    known = (None, set(_SIDES), {"shortest_edge"})
    if values is None or (resize and set(resize)) not in known or (crop and set(crop)) not in known[:2]:
        raise ValueError(f"{problem}, so it cannot be described for other programs")
    every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    described = {
        "resize": resize,
        "interpolation": Image.Resampling(
            getattr(image_processor, "resample", Image.Resampling.BILINEAR)
        ).name.lower(),
        "crop": crop,
        **_normalization(image_processor, values(every)[0, :, 0].double().numpy()),
        "shape": list(blank.shape[1:]),
    }
    for number, (width, height) in enumerate(_PROBES):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        expected = prepared_bytes(image_processor, [image])[0].numpy()
        size = list(expected.shape)
        if size != described["shape"]:
            raise ValueError(
                f"the {name} gives images of different sizes, {described['shape'][1:]} and {size[1:]}; "
                "what is exported takes images of one size; set do_center_crop=True and its crop_size"
            )
        if np.abs(bytes_as_described(described, image).astype(int) - expected).max() > _LEVELS:
            raise ValueError(f"{problem}, so it cannot be described for other programs")
    return described


def bytes_as_described(described: dict[str, Any], image: Image.Image) -> NDArray[np.uint8]:
    """An RGB image, resized and cropped as `preprocessing_of` describes it, as bytes `(3, H, W)`."""
    resize, crop = described["resize"], described["crop"]
    if resize is not None:
        edge = resize.get("shortest_edge")
        # The shortest edge is exact, and the other one rounded down.
        size = [int(edge * side / min(image.size)) for side in image.size] if edge else [resize[s] for s in _SIDES]
        image = image.resize((size[0], size[1]), Image.Resampling[described["interpolation"].upper()])
    if crop is not None:
        left, top = ((side - crop[name]) // 2 for side, name in zip(image.size, _SIDES, strict=True))
        # Beyond its edges it is black.
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _sizes(image_processor: Any, step: str, name: str) -> dict[str, int] | None:
    """A size of an image processor, if it takes the step."""
    if not getattr(image_processor, step, False):
        return None
    return {key: int(value) for key, value in dict(getattr(image_processor, name) or {}).items() if value}


def _normalization(image_processor: Any, values: NDArray[np.float64]) -> dict[str, Any]:
    """The "rescale", "mean" and "std" that make of every byte the values `(3, 256)`."""
    slope = (values[:, -1] - values[:, 0]) / 255
    rescale = float(image_processor.rescale_factor) if getattr(image_processor, "do_rescale", False) else 1.0
    std = rescale / slope
    mean = -values[:, 0] * std
    if np.abs((np.arange(256) * rescale - mean[:, None]) / std[:, None] - values).max() > 1e-4:
        raise ValueError(f"the {type(image_processor).__name__} does more to a byte than to rescale and normalize it")
    found = {}
    for name, fitted in (("mean", mean), ("std", std)):
        declared = np.asarray(getattr(image_processor, f"image_{name}", None) or np.nan, dtype=float)
        same = np.allclose(np.broadcast_to(declared, 3), fitted, rtol=1e-6, atol=1e-6)
        exact = np.broadcast_to(declared, 3) if same else fitted.round(_DIGITS)
        # Not -0.0.
        found[name] = [float(value) + 0.0 for value in exact]
    return {"rescale": rescale, **found}
