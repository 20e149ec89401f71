"""Cut-outs and background tiles as tensors, made from the files of the packages once.

`cutouts.csv` and `backgrounds.csv` list the files: which class a cut-out belongs to and what it is called, which part
of a photograph shows a place, and what is seen in pre-training.
"""

import csv
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.photographs.packages import DEBIAN, unpacked, work_folder
from starft_hf.utils.files import file_in_place_of
from starft_hf.utils.hashing import digest, tensors_digest


FOLDER = Path(__file__).parent
CUTOUT_PIXELS = 128
TILE_PIXELS = 176
MOST_TILES = 3
# Behind what a photograph leaves transparent, in the panoramas of some packages.
SKY = (150, 190, 230, 255)


@dataclass(frozen=True)
class Cutout:
    """A photographed object without its background.

    Attributes:
        kind: its class, such as "bird".
        name: what it is, such as "owl".
        file: in its package.
        seen: whether pre-training sees it.
    """

    kind: str
    name: str
    file: str
    seen: bool


@dataclass(frozen=True)
class Tile:
    """A square part of a photograph.

    Attributes:
        place: what it shows, such as "grass".
        photograph: which one it is part of.
        seen: whether pre-training sees the photograph.
    """

    place: str
    photograph: str
    seen: bool


@dataclass(frozen=True)
class Assets:
    """What images are composed of.

    Attributes:
        cutouts: colors multiplied by opacity, and opacity, `(n, 4, 128, 128)`, uint8.
        tiles: `(m, 3, 176, 176)`, uint8.
        cutout_rows: what the cut-outs show.
        tile_rows: what the tiles show.
    """

    cutouts: Tensor
    tiles: Tensor
    cutout_rows: tuple[Cutout, ...]
    tile_rows: tuple[Tile, ...]
    _resized: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def resized(self, pixels: int) -> tuple[Tensor, Tensor]:
        """The cut-outs and the tiles for images of some width and height, from 0 to 1; kept for the next call."""
        if pixels not in self._resized:
            sizes = (pixels, round(pixels * TILE_PIXELS / CUTOUT_PIXELS))
            contents = [content.float() / 255 for content in (self.cutouts, self.tiles)]
            cutouts, tiles = (
                content if content.shape[-1] == size else F.interpolate(content, size=size, mode="area")
                for content, size in zip(contents, sizes, strict=True)
            )
            self._resized[pixels] = (cutouts, tiles)
        return self._resized[pixels]

    @cached_property
    def key(self) -> str:
        """A digest of the pixels and the rows."""
        rows = torch.tensor(list(f"{self.cutout_rows} {self.tile_rows}".encode()), dtype=torch.uint8)
        return tensors_digest({"cutouts": self.cutouts, "tiles": self.tiles, "rows": rows})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What cut-outs are called, in alphabetical order, without duplicates."""
        return tuple(sorted({row.name for row in self.cutout_rows}))

    @cached_property
    def cutouts_of(self) -> dict[tuple[str, bool], list[int]]:
        """Indices of cut-outs, by class and whether pre-training sees them."""
        found: dict[tuple[str, bool], list[int]] = {}
        for index, row in enumerate(self.cutout_rows):
            found.setdefault((row.kind, row.seen), []).append(index)
        return found

    @cached_property
    def photographs_of(self) -> dict[tuple[str, bool], list[list[int]]]:
        """Indices of tiles, a list for each photograph, by place and whether pre-training sees them."""
        found: dict[tuple[str, bool], dict[str, list[int]]] = {}
        for index, row in enumerate(self.tile_rows):
            found.setdefault((row.place, row.seen), {}).setdefault(row.photograph, []).append(index)
        return {key: list(own.values()) for key, own in found.items()}


@lru_cache(maxsize=2)
def load_assets(work: Path | None = None, given: Path | None = None) -> Assets:
    """The assets, made from packages that are fetched unless that was done before.

    Args:
        work: the folder that keeps everything; None is `work_folder()`.
        given: a folder with the files of the packages, as of `unpacked`.
    """
    work = work_folder() if work is None else work
    cutouts, photographs = listed("cutouts"), listed("backgrounds")
    path = work / f"assets-{digest([cutouts, photographs])}.safetensors"
    if not path.is_file():
        folders = {package.name: unpacked(package, work, given) for package in DEBIAN}
        stamps = folders["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps"
        tiles = [read_tiles(folders[row["package"]] / row["file"], _box(row["box"])) for row in photographs]
        tensors = {
            "cutouts": torch.stack([read_cutout(stamps / row["file"]) for row in cutouts]),
            "tiles": torch.cat(tiles),
            "counts": torch.tensor([len(own) for own in tiles]),
        }
        with file_in_place_of(path) as temporary:
            save_file(tensors, temporary)
    tensors = load_file(path)
    return Assets(
        tensors["cutouts"],
        tensors["tiles"],
        tuple(Cutout(row["class"], row["name"], row["file"], row["seen"] == "yes") for row in cutouts),
        tuple(
            Tile(row["place"], f"{row['package']}/{row['file']}", row["seen"] == "yes")
            for row, count in zip(photographs, tensors["counts"].tolist(), strict=True)
            for _ in range(count)
        ),
    )


def listed(name: str) -> list[dict[str, str]]:
    """The rows of one of the two lists, "cutouts" or "backgrounds"."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _box(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split())


def read_cutout(path: Path, pixels: int = CUTOUT_PIXELS) -> Tensor:
    """An image with transparency, cropped to what is visible and resized to fit a square, in the middle of it.

    Returns:
        uint8, `(4, pixels, pixels)`: colors multiplied by opacity, and opacity.
    """
    image = PILImage.open(path).convert("RGBA")
    # Faint shadows do not count.
    image = image.crop(image.getchannel("A").point(lambda value: 255 * (value > 24)).getbbox())
    content = np.asarray(image, dtype=np.float32)
    content[..., :3] *= content[..., 3:] / 255
    scale = pixels / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    kind = PILImage.Resampling.BOX if scale < 1 else PILImage.Resampling.BILINEAR
    channels = [np.asarray(PILImage.fromarray(content[..., i]).resize(size, kind)) for i in range(4)]
    found = torch.zeros(4, pixels, pixels, dtype=torch.uint8)
    left, top = ((pixels - length) // 2 for length in size)
    found[:, top : top + size[1], left : left + size[0]] = torch.from_numpy(np.stack(channels).round()).byte()
    return found


def read_tiles(path: Path, box: tuple[float, ...], pixels: int = TILE_PIXELS) -> Tensor:
    """Squares along the longer side of a part of a photograph, up to three, as uint8 `(n, 3, pixels, pixels)`.

    Args:
        path: of the photograph.
        box: the part: left, top, right and bottom as fractions of width and height.
        pixels: width and height of a square, and of the shorter side of the part once it is resized.
    """
    image = PILImage.open(path).convert("RGBA")
    opaque = PILImage.new("RGBA", image.size, SKY)
    opaque.alpha_composite(image)
    image = opaque.convert("RGB")
    left, top, right, bottom = (round(part * length) for part, length in zip(box, image.size * 2, strict=True))
    image = image.crop((left, top, right, bottom))
    scale = pixels / min(image.size)
    size = [max(pixels, round(length * scale)) for length in image.size]
    image = image.resize(size, PILImage.Resampling.LANCZOS if scale < 1 else PILImage.Resampling.BICUBIC)
    count = min(MOST_TILES, round(max(size) / pixels))
    spare = [(length - pixels) / max(1, count - 1) for length in size]
    corners = [[int(number * step) for step in spare] for number in range(count)] if count > 1 else [[0, 0]]
    squares = [image.crop((left, top, left + pixels, top + pixels)) for left, top in corners]
    return torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1) for square in squares])
