"""The most confident mistakes in the worst group, with thumbnails."""

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from starft_hf.data.images import as_rgb
from starft_hf.report.rows import Section


# Thumbnails on the page, per dataset, if that is enough for a few of every model.
MAX_THUMBNAILS = 12
_MIN_PER_MODEL = 3
_PIXELS = 128


def galleries_of(section: Section, images: Mapping[int, Any]) -> list[dict[str, Any]]:
    """The mistakes of every model on a dataset, from the first of its seeds that has any, with `images` by index."""
    found = []
    for entry, _ in section.trained:
        runs = [(entry.label, run.seed, run.results[section.dataset].mistakes) for run in entry.runs]
        found += [part for part in runs if part[2]][:1]
    count = max(_MIN_PER_MODEL, MAX_THUMBNAILS // max(1, len(found)))
    return [
        {
            "label": label,
            "seed": seed,
            "group": mistakes[0].group,
            "tiles": [(mistake, _thumbnail(images.get(mistake.sample))) for mistake in mistakes[:count]],
        }
        for label, seed, mistakes in found[:MAX_THUMBNAILS]
    ]


def _thumbnail(image: Any) -> dict[str, Any] | None:
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
    # So few pixels should be seen as squares rather than blurred.
    return {"uri": uri, "coarse": max(rgb.size) <= _PIXELS // 2}
