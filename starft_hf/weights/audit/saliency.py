"""Which parts of an image speak for a mistake, measured by hiding parts of it; no gradients, so for any tower.

Sources: Zeiler and Fergus, arXiv 1311.2901, hide one part at a time. Of a background the rest says as much as the part
that is hidden, so half of the parts are hidden at once here, as Petsiuk et al., arXiv 1806.07421, do at random. Which
halves is a two-level design (Plackett and Burman, 1946) with all complements, so that no part's effect is confounded
with that of another part or of a pair of parts. What is explained is why the answer is one class rather than another.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import hadamard
from scipy.special import softmax
from torch import nn

from starft_hf.data.rgb import ScaledImage
from starft_hf.report.audit import SaliencyMap
from starft_hf.weights.audit.measuring import Tower
from starft_hf.weights.repair.embedded import Floats


# Maps have this many parts on a side if the patches of the vision tower are not a multiple of a number near it.
_PARTS = 7
_FEWEST_PARTS, _MOST_PARTS = 4, 8

MOST_MAPS = 24


def check_saliency_maps(count: Any) -> None:
    """Raise ValueError if `count` is not a number of images to explain."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_MAPS:
        raise ValueError(
            f"saliency_maps is {count!r}; pass how many of the most confident mistakes are explained, an integer from "
            f"0, for none, to {MOST_MAPS}"
        )


def saliency_map(tower: Tower, image: ScaledImage, logits: Floats, classes: tuple[int, int]) -> SaliencyMap:
    """What of an image, which has the logits `(C,)`, speaks for the first of two classes rather than the second."""
    shown = shown_parts(parts_of(tower.model))
    color = mean_color(tower.subject.encoder.image_processor)
    variants = [replace(image, image=hidden(image.image, each, color)) for each in shown]
    first, second = tower.classify(tower.embed(variants))[:, classes].T
    answer = int(logits.argmax())
    values = effects(shown, first - second)
    return SaliencyMap(tower.subject.class_names[answer], float(softmax(logits)[answer]), values.tolist())


def parts_of(model: nn.Module) -> int:
    """How many parts a map has on a side; if possible, no patch of a vision transformer is in two of them."""
    config = getattr(getattr(model, "config", None), "vision_config", None)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int):
        return _PARTS
    fitting = [parts for parts in range(_FEWEST_PARTS, _MOST_PARTS + 1) if size // patch % parts == 0]
    return max(fitting, default=_PARTS)


def shown_parts(parts: int) -> NDArray[np.bool_]:
    """Which parts of an image its variants show, `(V, parts, parts)`; half of the variants show any one part."""
    order = 1 << (parts**2 - 1).bit_length()
    design = hadamard(order)[:, order - parts**2 :]
    return np.concatenate([design, -design]).reshape(-1, parts, parts) > 0


def mean_color(image_processor: Any) -> tuple[int, int, int]:
    """The color that hidden parts get, which the image processor makes 0 of."""
    mean = getattr(image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    red, green, blue = (round(255 * float(channel)) for channel in mean)
    return red, green, blue


def hidden(image: Image.Image, shown: NDArray[np.bool_], color: Sequence[int]) -> Image.Image:
    """An RGB image with the parts that are not shown `(parts, parts)` in one color."""
    rows, columns = (np.arange(pixels) * len(shown) // pixels for pixels in (image.height, image.width))
    pixels = np.where(shown[rows][:, columns][..., None], np.asarray(image), np.array(color, dtype=np.uint8))
    return Image.fromarray(pixels)


def effects(shown: NDArray[np.bool_], values: Floats) -> Floats:
    """What every part adds: the mean of `values` `(V,)` where it is shown, less that where it is hidden."""
    found: Floats = np.tensordot(values, 2.0 * shown - 1, 1) * 2 / len(values)
    return found
