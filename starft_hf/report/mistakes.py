"""The worst group's most confident mistakes, with small pictures of them."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from starft_hf.data.images import as_rgb
from starft_hf.evaluation.results import Mistake
from starft_hf.report.table import Entry, without_interpolations


# Pictures on the page, per data set, where that leaves a few for every model.
MAX_PICTURES = 12
_FEWEST = 3

_PIXELS = 128


@dataclass(frozen=True)
class Picture:
    """A small picture.

    Attributes:
        uri: the picture itself, a PNG as a data URI.
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
        tiles: the mistakes with their pictures, None where there is none.
    """

    label: str
    seed: int
    group: str
    tiles: tuple[tuple[Mistake, Picture | None], ...]


def galleries_of(entries: Sequence[Entry], dataset: str, images: Mapping[int, Any]) -> list[Gallery]:
    """What to show of a data set: mistakes of every model, of the first of its seeds that has any.

    Args:
        entries: the models.
        dataset: name of the data set.
        images: pictures by their index in the data set, PIL images or arrays of unsigned bytes.

    Raises:
        TypeError: if a picture that is needed is neither.
    """
    found = []
    for entry in without_interpolations(entries):
        run = next((run for run in entry.runs if run.results[dataset].mistakes), None)
        if run is not None:
            found.append((entry.label, run))
    galleries = []
    for label, run in found[:MAX_PICTURES]:
        mistakes = run.results[dataset].mistakes[: max(_FEWEST, MAX_PICTURES // len(found))]
        tiles = tuple((mistake, _picture(images.get(mistake.sample))) for mistake in mistakes)
        galleries.append(Gallery(label, run.seed, mistakes[0].group, tiles))
    return galleries


def _picture(image: Any) -> Picture | None:
    if image is None:
        return None
    rgb = as_rgb(image)
    # On a fresh canvas nothing of the file's metadata, such as the place a photo was taken, comes along.
    small = Image.new("RGB", rgb.size)
    small.paste(rgb)
    small.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Picture(uri, coarse=max(rgb.size) <= _PIXELS // 2)
