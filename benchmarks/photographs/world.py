"""Datasets of the second world: photographed objects on photographs, whose place predicts the class in training.

A draw decides which cut-outs and which photographs belong to which split, so that figures over several draws vary with
the content and not only with noise. Models are pre-trained on part of both (`seen`); a draw divides the rest:

| Split | Cut-outs | Photographs |
| --- | --- | --- |
| train | seen, a part of their own | seen, most of them |
| validation | seen, another part | not seen, a part of their own |
| test | seen, the remaining part | not seen, the remaining part |
| new | not seen, most of them: new individuals | those of test |
| held_out | seen, of the other classes | those of test |
"""

import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, load_from_disk
from PIL import Image as PILImage

from benchmarks.grid_runner import made_once
from benchmarks.photographs.assets import Assets, load_assets
from benchmarks.photographs.compose import BLUR, compose
from benchmarks.photographs.packages import work_folder
from starft_hf.utils.hashing import digest
from starft_hf.utils.names import unknown_name


CLASS_NAMES = (
    "bird",
    "mammal",
    "flower",
    "fruit",
    "tool",
    "vehicle",
    "vegetable",
    "fish",
    "insect",
    "instrument",
    "ball",
    "tree",
)
HOMES = ("water", "grass")
PHRASES = {
    "grass": ("on the grass", "in a green field", "on a lawn"),
    "water": ("on the water", "in the sea", "under water"),
    "sand": ("on the sand", "in the desert"),
    "forest": ("in the forest", "among trees"),
    "rock": ("on the rocks", "in front of a stone wall"),
    "sky": ("in the sky", "among the clouds"),
}
PLACES = tuple(PHRASES)
CAPTION_TEMPLATE = "a photo of a {}."
STYLES = ("clean", "print")

# A number for each split, so that splits of a draw share no randomness, and its rows.
_SPLITS = {"train": (0, 480), "validation": (1, 480), "test": (2, 960), "new": (3, 480), "held_out": (4, 480)}
# Of the cut-outs that pre-training has seen, those for training and validation; the remaining ones are for testing.
TRAINED, VALIDATED = 0.5, 0.2
# Of the photographs that it has seen, those for training; of the others, those for validation.
TRAINED_PHOTOGRAPHS, VALIDATED_PHOTOGRAPHS = 0.7, 0.4
# Of the cut-outs that it has not seen, those of a draw.
NEW = 0.7
# Changes with what a split consists of, so that splits kept on disk are made anew.
_VERSION = 1


@dataclass(frozen=True)
class Content:
    """What the images of a split may be composed of.

    Attributes:
        cutouts: by class, indices of cut-outs.
        photographs: by place, a list of indices of tiles for each photograph.
    """

    cutouts: dict[str, list[int]]
    photographs: dict[str, list[list[int]]]

    def pick(self, rng: np.random.Generator, kind: str, place: str) -> tuple[int, int]:
        """A random cut-out of a class, and a random tile of a random photograph of a place."""
        photographs = self.photographs[place]
        tiles = photographs[rng.integers(len(photographs))]
        return self.cutouts[kind][rng.integers(len(self.cutouts[kind]))], tiles[rng.integers(len(tiles))]


def content_of(split: str, draw: int, assets: Assets) -> Content:
    """What a split of a draw is composed of, of all classes and of both homes."""
    cutouts, photographs = {}, {}
    for kind in CLASS_NAMES:
        own = _shuffled(assets.cutouts_of[kind, split != "new"], draw, kind)
        ends = [0, max(1, round(TRAINED * len(own))), max(2, round((TRAINED + VALIDATED) * len(own))), len(own)]
        part = {"train": 0, "validation": 1, "test": 2}.get(split)
        if part is not None:
            own = own[ends[part] : ends[part + 1]]
        cutouts[kind] = own[: math.ceil(NEW * len(own))] if split == "new" else own
    for place in HOMES:
        own = _shuffled(assets.photographs_of[place, split == "train"], draw, place)
        end = round((TRAINED_PHOTOGRAPHS if split == "train" else VALIDATED_PHOTOGRAPHS) * len(own))
        photographs[place] = own[:end] if split in ("train", "validation") else own[end:]
    return Content(cutouts, photographs)


def _shuffled(items: list, draw: int, key: str) -> list:
    return [items[i] for i in np.random.default_rng((draw, zlib.crc32(key.encode()))).permutation(len(items))]


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """The first so many classes, or those that are named. They are at home on water and on grass in turn."""
    names = CLASS_NAMES[:classes] if isinstance(classes, int) else tuple(classes)
    for name in names:
        if name not in CLASS_NAMES:
            raise ValueError(unknown_name("class", name, CLASS_NAMES))
    if len(set(names)) < max(len(names), 2) or (isinstance(classes, int) and len(names) != classes):
        raise ValueError(f"classes is {classes!r}; pass 2 to {len(CLASS_NAMES)}, or at least two different names")
    return names


def make_split(
    split: str,
    *,
    draw: int = 0,
    correlation: float = 0.95,
    classes: int | Sequence[str] = 6,
    pixels: int = 48,
    size: int | None = None,
    style: str = "print",
    assets: Assets | None = None,
) -> Dataset:
    """A split of a draw, made once and then read from the folder of `work_folder()`.

    Args:
        split: "train", "validation", "test", "new" (individuals that pre-training has not seen) or "held_out" (the
            classes that are not asked for). All but "train" have every class on both places equally often.
        draw: which cut-outs and photographs belong to the split, and how images of them look.
        correlation: fraction of a class's training images at home.
        classes: how many, 2 to 12, or their names. The first is at home on water, the second on grass, and so on.
        pixels: width and height, 48 or 128.
        size: rows, rounded down to full classes (of "train") or full groups; None is 960 for "test", 480 for others.
        style: "clean" as in pre-training, or "print".
        assets: what images are composed of; None loads those of the packages.

    Returns:
        The columns image, label (`ClassLabel` of the classes), name (`ClassLabel` of all things that cut-outs show,
        such as "owl"), place, and group ("water class on grass"; of held-out classes the place).

    Raises:
        ValueError: if the split, a class, the style, the correlation or the size is not possible.
    """
    names = class_names(classes)
    homes = {kind: HOMES[index % 2] for index, kind in enumerate(names)}
    if split == "held_out":
        names = tuple(name for name in CLASS_NAMES if name not in names)
    _check(split, correlation, pixels, style)
    number, usual_size = _SPLITS[split]
    size = usual_size if size is None else size
    if size < 2 * len(names) or not names:
        raise ValueError(f"size is {size} for the classes {list(names)} of {split!r}; it needs two images of each")
    rng = np.random.default_rng((number, draw, 1))
    rows = _rows(names, homes, size, correlation if split == "train" else None)
    rows = [rows[i] for i in rng.permutation(len(rows))]

    def made(assets: Assets) -> Dataset:
        content = content_of(split, draw, assets)
        picked = np.array([content.pick(rng, *row) for row in rows])
        images = compose(rng, assets, picked, pixels, style)
        return _dataset(rows, images, [assets.cutout_rows[i].name for i in picked[:, 0]], assets, names, homes)

    if assets is not None:
        return made(assets)
    known = load_assets()
    shortcut = correlation if split == "train" else None
    key = [_VERSION, known.key, split, draw, shortcut, names, homes, pixels, size, style]
    folder = work_folder() / "splits" / f"{split}-{digest(key)}"
    return load_from_disk(str(made_once(folder, lambda temporary: made(known).save_to_disk(str(temporary)))))


def _dataset(
    rows: Sequence[tuple[str, str]],
    images: torch.Tensor,
    shown: Sequence[str],
    assets: Assets,
    names: Sequence[str],
    homes: Mapping[str, str],
) -> Dataset:
    return Dataset.from_dict(
        {
            "image": [{"bytes": _png(image), "path": None} for image in images.permute(0, 2, 3, 1).numpy()],
            "label": [names.index(kind) for kind, _ in rows],
            "name": [assets.names.index(name) for name in shown],
            "place": [place for _, place in rows],
            "group": [f"{homes[kind]} class on {place}" if kind in homes else place for kind, place in rows],
        },
        features=Features(
            image=Image(),
            label=ClassLabel(names=list(names)),
            name=ClassLabel(names=list(assets.names)),
            place=Value("string"),
            group=Value("string"),
        ),
    )


def _check(split: str, correlation: float, pixels: int, style: str) -> None:
    for what, value, known in (("split", split, _SPLITS), ("style", style, STYLES)):
        if value not in known:
            raise ValueError(unknown_name(what, value, known))
    if pixels not in BLUR:
        raise ValueError(f"pixels is {pixels}; choose one of {sorted(BLUR)}")
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}; it must be between 0 and 1")


def _rows(names: Sequence[str], homes: dict[str, str], size: int, correlation: float | None) -> list[tuple[str, str]]:
    """Pairs of a class and a place: exact fractions at home or, without a correlation, as many on either place."""
    per_class = size // len(names)
    at_home = per_class // 2 if correlation is None else round(correlation * per_class)
    away = at_home if correlation is None else per_class - at_home
    return [
        (kind, place)
        for kind in names
        for place in HOMES
        for _ in range(at_home if place == homes.get(kind) else away)
    ]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
