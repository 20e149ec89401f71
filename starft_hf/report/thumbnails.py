"""Small images within a page."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from starft_hf.data.rgb import as_rgb


_PIXELS = 128

_URI = "data:image/png;base64,"


@dataclass(frozen=True)
class Thumbnail:
    """An image of at most 128 pixels on a side.

    Attributes:
        uri: the PNG file as an address.
        width, height: in pixels.
        coarse: whether the image has so few pixels that they should be seen as squares rather than blurred.
    """

    uri: str
    width: int
    height: int
    coarse: bool


def thumbnail(image: Any) -> Thumbnail | None:
    """The thumbnail of an image; None without one."""
    if image is None:
        return None
    rgb = as_rgb(image)
    # A fresh canvas keeps none of the file's metadata, such as the place a photo was taken.
    small = Image.new("RGB", rgb.size)
    small.paste(rgb)
    small.thumbnail((_PIXELS, _PIXELS))
    return Thumbnail(png_uri(small), *small.size, coarse=max(rgb.size) <= _PIXELS // 2)


def png_uri(image: Image.Image) -> str:
    """An image as the address of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"{_URI}{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def thumbnail_from(uri: str) -> Image.Image:
    """The image of a thumbnail; ValueError if `uri` is not that of one."""
    try:
        content = base64.b64decode(uri.removeprefix(_URI), validate=True)
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if max(image.size) > _PIXELS:
            raise ValueError(f"it has {image.width} x {image.height} pixels, more than {_PIXELS} x {_PIXELS}")
        image.load()
    except (ValueError, OSError, SyntaxError) as error:
        raise ValueError(f"a thumbnail cannot be read: {error}") from error
    return image
