"""Images as bytes, which are rescaled and normalized on the device, just as an image processor would have done it.

Bytes are a quarter of the floats that an image processor returns. It treats every byte of a channel alike, so what it
makes of all 256 fits in a table; looking bytes up there gives its values bit for bit, in whichever order it multiplies
and subtracts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)

_BYTES = 256


def is_of_transformers(image_processor: Any) -> bool:
    """Whether transformers defines an image processor, so that its settings say what it does. Others may do more."""
    return type(image_processor).__module__.startswith("transformers.")


class ByteValues:
    """The values `(3, 256)` that an image processor makes of bytes, by channel, in float32."""

    def __init__(self, values: Tensor):
        self._values = values.flatten()
        self._of_device: dict[torch.device, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Processes that load data have no use for what is on a GPU.
        return {"_values": self._values, "_of_device": {}}

    def __call__(self, pixels: Tensor) -> Tensor:
        """What the image processor makes of bytes `(N, 3, H, W)` or `(3, H, W)`, on their device."""
        if pixels.device not in self._of_device:
            self._of_device[pixels.device] = self._values.to(pixels.device)
        channels = torch.arange(3, dtype=torch.int32, device=pixels.device)[:, None, None]
        places = pixels.int() + _BYTES * channels
        return self._of_device[pixels.device].index_select(0, places.flatten()).view(pixels.shape)


def prepared_bytes(image_processor: Any, images: Sequence[Any], **settings: bool) -> Tensor:
    """The images as an image processor resizes and crops them, `(N, 3, H, W)`, neither rescaled nor normalized.

    `settings` are further ones of those that it has.
    """
    steps = {"do_rescale": False, "do_normalize": False, "include_top": False, **settings}
    known = {name: value for name, value in steps.items() if hasattr(image_processor, name)}
    prepared: Tensor = image_processor(images=images, return_tensors="pt", **known)["pixel_values"]
    return prepared


def byte_values(image_processor: Any) -> ByteValues | None:
    """What an image processor makes of bytes; None, which is logged, for one that may do more than look at each byte.

    That is any that transformers does not define, and any whose own output differs in a single bit.
    """
    if is_of_transformers(image_processor):
        every = Image.fromarray(np.arange(_BYTES, dtype=np.uint8)[None, :, None].repeat(4, 0).repeat(3, 2))
        noise = np.random.default_rng(0).integers(0, _BYTES, (90, 120, 3), dtype=np.uint8)
        probe = [Image.fromarray(noise)]
        try:
            table = image_processor(images=[every], return_tensors="pt", do_resize=False, do_center_crop=False)
            values = ByteValues(table["pixel_values"][0, :, 0])
            features = image_processor(images=probe, return_tensors="pt")
            prepared = prepared_bytes(image_processor, probe)
            is_byte = prepared.dtype == torch.uint8 and features.keys() == {"pixel_values"}
            if is_byte and torch.equal(values(prepared), features["pixel_values"]):
                return values
        except (ArithmeticError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            pass
    logger.warning_once(
        f"{type(image_processor).__name__} may do more than to resize, crop, rescale and normalize; its images are "
        "normalized where they are loaded, and sent to the device as floats rather than bytes."
    )
    return None
