"""The photographs with many classes: what cut-outs are called, such as "owl", of which 95 names are fine-tuned.

The names of their classes are known from pre-training and never seen in fine-tuning. Names of birds, flowers and tools
are at home on water, those of mammals, fruit and vehicles on grass. Every replicate has photographs of its own.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from benchmarks.photographs import model_a, models
from benchmarks.photographs.assets import Assets, load_assets
from benchmarks.photographs.compose import compose
from benchmarks.photographs.world import CAPTION_TEMPLATE, CLASS_NAMES, HOMES, PHRASES, PLACES


KINDS = CLASS_NAMES[:6]
SHIFT = ("bird", "mammal")
NEW_PAIR = ("vegetable", "fish")
TEMPLATES = tuple(f"{{}} {phrase}." for phrases in PHRASES.values() for phrase in phrases)
PER_NAME = 10
# Of the photographs of a place, those of a replicate.
PHOTOGRAPHS = 0.7
MODELS_A = tuple(name for name in models.MODELS if name.startswith("A"))


class Row(NamedTuple):
    """What an image shows: a cut-out on a place; its label and its group."""

    cutout: int
    place: str
    label: int
    group: str


def base_folder(model: int, work: Path) -> Path:
    """The folder of a model A, by its number."""
    return models.folder_of(MODELS_A[model], progress=False)


def cutouts_by_name(assets: Assets, kinds: Sequence[str]) -> dict[str, list[int]]:
    """The cut-outs that pre-training has seen, by what they are called; without those called like a class."""
    found: dict[str, list[int]] = {}
    for kind in kinds:
        for index in assets.cutouts_of[kind, True]:
            found.setdefault(assets.cutout_rows[index].name, []).append(index)
    return {name: own for name, own in found.items() if name not in CLASS_NAMES}


def make_dataset(
    rng: np.random.Generator, rows: Sequence[Row], names: Sequence[str], seen: bool = False, style: str = "print"
) -> Dataset:
    """Images of these rows on photographs that pre-training has seen or not, shuffled: image, label and group."""
    assets = load_assets()
    photographs = {}
    for place in PLACES:
        own = assets.photographs_of[place, seen]
        photographs[place] = [own[index] for index in rng.permutation(len(own))[: math.ceil(PHOTOGRAPHS * len(own))]]
    rows = [rows[index] for index in rng.permutation(len(rows))]
    picked = []
    for row in rows:
        tiles = photographs[row.place][rng.integers(len(photographs[row.place]))]
        picked.append((row.cutout, tiles[rng.integers(len(tiles))]))
    images = compose(rng, assets, np.array(picked), model_a.PIXELS, style).permute(0, 2, 3, 1).numpy()
    return Dataset.from_dict(
        {
            "image": [PILImage.fromarray(image) for image in images],
            "label": [row.label for row in rows],
            "group": [row.group for row in rows],
        },
        features=Features(image=Image(), label=ClassLabel(names=list(names)), group=Value("string")),
    )


def train_split(correlation: float, replicate: int) -> Dataset:
    """All names of six classes; of every class this fraction of the images is at home."""
    assets, rng = load_assets(), np.random.default_rng((23, replicate))
    cutouts = cutouts_by_name(assets, KINDS)
    rows = []
    for number, kind in enumerate(KINDS):
        own = [name for name, indices in cutouts.items() if assets.cutout_rows[indices[0]].kind == kind]
        names = own * PER_NAME
        home, away = HOMES[number % 2], HOMES[1 - number % 2]
        at_home = rng.permutation(len(names)) < round(correlation * len(names))
        for name, is_home in zip(names, at_home, strict=True):
            place = home if is_home else away
            cutout = cutouts[name][rng.integers(len(cutouts[name]))]
            rows.append(Row(cutout, place, list(cutouts).index(name), f"{kind} on {place}"))
    return make_dataset(rng, rows, list(cutouts), seen=True)


def test_sets(replicate: int) -> dict[str, tuple[Dataset, str | list[str]]]:
    """The trained names, two group shifts that were never trained on, and six retention sets, with their prompts."""
    assets, rng = load_assets(), np.random.default_rng((24, replicate))
    others = [kind for kind in CLASS_NAMES if kind not in KINDS]
    elsewhere = [place for place in PLACES if place not in HOMES]

    def of_kinds(kinds: Sequence[str], places: Sequence[str], repeats: int, seen: bool = True) -> list[Row]:
        return [
            Row(int(rng.choice(assets.cutouts_of[kind, seen])), place, label, f"{kind} on {place}")
            for label, kind in enumerate(kinds)
            for place in places
            for _ in range(repeats)
        ]

    def of_names(kinds: Sequence[str], places: Sequence[str], repeats: int) -> tuple[list[Row], list[str]]:
        cutouts = cutouts_by_name(assets, kinds)
        rows = [
            Row(int(rng.choice(own)), place, label, f"{assets.cutout_rows[own[0]].kind} on {place}")
            for label, own in enumerate(cutouts.values())
            for place in places
            for _ in range(repeats)
        ]
        return rows, list(cutouts)

    fine_rows, fine = of_names(KINDS, HOMES, 3)
    new_rows, new_fine = of_names(others, PLACES, 1)
    by_place = [row._replace(label=PLACES.index(row.place)) for row in of_kinds(CLASS_NAMES, PLACES, 3)]
    phrases = [PHRASES[place][0] for place in PLACES]
    parts: dict[str, tuple[list[Row], Sequence[str], str, str | list[str]]] = {
        "fine classes": (fine_rows, fine, "print", CAPTION_TEMPLATE),
        "common names": (of_kinds(SHIFT, HOMES, 120), SHIFT, "print", CAPTION_TEMPLATE),
        "new classes": (of_kinds(NEW_PAIR, HOMES, 120), NEW_PAIR, "print", CAPTION_TEMPLATE),
        "other classes": (of_kinds(others, HOMES, 20), others, "print", CAPTION_TEMPLATE),
        "new individuals": (of_kinds(CLASS_NAMES, HOMES, 10, False), CLASS_NAMES, "print", CAPTION_TEMPLATE),
        "classes on other places": (of_kinds(CLASS_NAMES, elsewhere, 4), CLASS_NAMES, "print", CAPTION_TEMPLATE),
        "all classes, clean": (of_kinds(CLASS_NAMES, PLACES, 3), CLASS_NAMES, "clean", CAPTION_TEMPLATE),
        "new fine classes, clean": (new_rows, new_fine, "clean", CAPTION_TEMPLATE),
        "places, clean": (by_place, phrases, "clean", [f"a photo of a {kind} {{}}." for kind in CLASS_NAMES]),
    }
    return {
        name: (make_dataset(rng, rows, names, style=style), prompt)
        for name, (rows, names, style, prompt) in parts.items()
    }
