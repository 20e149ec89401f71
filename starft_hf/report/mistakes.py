"""The most confident mistakes in the worst group, with thumbnails."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from starft_hf.data.images import as_rgb
from starft_hf.evaluation.results import Mistake
from starft_hf.report.rows import Section


# Thumbnails on the page, per dataset, if that is enough for a few of every model.
MAX_THUMBNAILS = 12
_MIN_PER_MODEL = 3

_PIXELS = 128


@dataclass(frozen=True)
class Thumbnail:
    """A small image.

    Attributes:
        uri: the image itself, a PNG as a data URI.
        coarse: whether it has so few pixels that they should be seen as squares rather than blurred.
    """

    uri: str
    coarse: bool


@dataclass(frozen=True)
class Gallery:
    """The most confident mistakes of one model in its worst group.

    Attributes:
        label: name of the model.
        seed: of the run they are from.
        group: name of the worst group.
        tiles: the mistakes with their thumbnails, None without an image.
    """

    label: str
    seed: int
    group: str
    tiles: tuple[tuple[Mistake, Thumbnail | None], ...]


def galleries_of(section: Section, images: Mapping[int, Any]) -> list[Gallery]:
    """The mistakes of every model on a dataset, from the first of its seeds that has any.

    Args:
        section: of the dataset.
        images: by their index in the dataset, PIL images or arrays of unsigned bytes.

    Raises:
        TypeError: if an image that is needed is neither.
    """
    found = []
    for entry, _ in section.trained:
        runs = [(entry.label, run.seed, run.results[section.dataset].mistakes) for run in entry.runs]
        found += [part for part in runs if part[2]][:1]
    count = max(_MIN_PER_MODEL, MAX_THUMBNAILS // max(1, len(found)))
    galleries = []
    for label, seed, mistakes in found[:MAX_THUMBNAILS]:
        tiles = tuple((mistake, _thumbnail(images.get(mistake.sample))) for mistake in mistakes[:count])
        galleries.append(Gallery(label, seed, mistakes[0].group, tiles))
    return galleries


def _thumbnail(image: Any) -> Thumbnail | None:
    if image is None:
        return None
    rgb = as_rgb(image)
    # A fresh canvas keeps none of the file's metadata, such as the place a photo was taken.
    small = Image.new("RGB", rgb.size)
    small.paste(rgb)
    small.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Thumbnail(uri, coarse=max(rgb.size) <= _PIXELS // 2)
