"""Which files are images that can be opened, and which could be with another package."""

import importlib
import os

from PIL import Image, features


# Formats that Pillow registers for reading and that need a program or a handler of their own.
_NOT_READ = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "PDF", "WMF"}

_HEIC = "HEIC images need another package: pip install pillow-heif"
_AVIF = "AVIF images need a newer Pillow: pip install --upgrade pillow"
_ENDINGS = {".heic": _HEIC, ".heif": _HEIC, ".heics": _HEIC, ".heifs": _HEIC, ".hif": _HEIC}
_ENDINGS |= {".avif": _AVIF, ".avifs": _AVIF}
# What such a file begins with, from its fifth byte on.
_BRANDS = {b"ftyphe": _HEIC, b"ftypmif1": _HEIC, b"ftypmsf1": _HEIC, b"ftypavi": _AVIF}


def is_image(path: str) -> bool:
    """Whether a file is one that Pillow can open, by the end of its name."""
    kind = Image.registered_extensions().get(_ending(path))
    # The format is registered where Pillow is built without its library, too.
    missing = kind == "AVIF" and not features.check("avif")
    return kind in Image.OPEN and kind not in _NOT_READ and not missing


def needs_plugin(path: str, content: bytes = b"") -> str | None:
    """Why an image cannot be opened without another package, with the command that installs it.

    None if it can be, and for what is not an image. `content`, how the file begins, counts rather than its name.
    """
    found = next((reason for brand, reason in _BRANDS.items() if content[4:12].startswith(brand)), None)
    found = found or (None if content else _ENDINGS.get(_ending(path)))
    can_open = is_image("x.heic" if found == _HEIC else "x.avif")
    return None if can_open else found


def register_plugins() -> None:
    """Let Pillow open HEIC images, if pillow-heif is installed."""
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        return
    plugin.register_heif_opener()


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


# Processes that load data import this as well, however they are started.
register_plugins()
