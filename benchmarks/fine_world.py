"""The drawn world with many classes: shapes in ten colors, of which sixty are fine-tuned.

A shape is "curved" or "angular", a name that pre-training knows and fine-tuning never sees. All curved classes are at
home on water, and all angular ones on grass, as most birds of one kind are photographed in one place.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL.Image import Image as PILImage
from tokenizers import AddedToken
from transformers import AutoProcessor, CLIPProcessor

from starft_hf.demo import world
from starft_hf.demo.pretrain import MODEL_FOLDER, pretrain
from starft_hf.demo.world import BACKGROUND_PHRASES, BACKGROUNDS, CAPTION_TEMPLATE, CLASS_NAMES, UNRELATED_PHRASES


COLORS: dict[str, world.RGB] = {
    **world.COLORS,
    "green": (14, 84, 36),
    "teal": (0, 96, 110),
    "brown": (96, 58, 16),
    "red": (206, 26, 32),
    "orange": (236, 118, 0),
    "pink": (226, 50, 150),
}
KINDS = {
    "curved shape": ("circle", "ring", "crescent", "heart"),
    "angular shape": ("square", "triangle", "star", "cross"),
}
HOMES = {"curved shape": "water", "angular shape": "grass"}
HELD_OUT = ("heart", "cross")
TRAINED = tuple(name for name in CLASS_NAMES if name not in HELD_OUT)
FINE = tuple(f"{color} {shape}" for shape in TRAINED for color in COLORS)
# Further words of captions, for the tokenizer.
WORDS = ("curved", "angular", "shape", *(color for color in COLORS if color not in world.COLORS))

PER_CLASS = 10
PRETRAINING_STEPS = 1200
# How often a caption of pre-training names the color and the shape, the shape, the color, and the kind.
NAMED = (0.5, 0.2, 0.12, 0.18)


class Row(NamedTuple):
    """What an image shows, its label and its group."""

    shape: str
    color: str | None
    background: str
    label: int
    group: str


def kind_of(shape: str) -> str:
    """The name that a shape has in common with half of the others."""
    return next(kind for kind, shapes in KINDS.items() if shape in shapes)


def draw_captioned(rng: np.random.Generator) -> tuple[PILImage, str]:
    """A clean image of any shape in any color on any background, and its caption, for pre-training."""
    shape, color = CLASS_NAMES[rng.integers(len(CLASS_NAMES))], list(COLORS)[rng.integers(len(COLORS))]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    names = (f"{color} {shape}", shape, f"{color} shape", kind_of(shape))
    caption = f"a photo of a {names[rng.choice(len(names), p=NAMED)]}"
    if rng.random() < 0.6:
        phrases = BACKGROUND_PHRASES[background]
        caption += f" {phrases[rng.integers(len(phrases))]}"
    if rng.random() < 0.1:
        caption += f" {UNRELATED_PHRASES[rng.integers(len(UNRELATED_PHRASES))]}"
    return world.draw_image(rng, shape, background, color=COLORS[color]), f"{caption}."


def make_processor() -> CLIPProcessor:
    """The demo's processor, whose tokenizer knows the further words."""
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    processor.tokenizer.add_tokens([AddedToken(word, single_word=True) for word in WORDS])
    return processor


def base_folder(model: int, work: Path) -> Path:
    """The folder of a model, by its number, which is pre-trained unless that was done before."""
    folder = work / f"fine-{model}"
    if not (folder / "config.json").is_file():
        drawn = {"draw_captioned": draw_captioned, "processor": make_processor()}
        tuned, processor = pretrain(model, PRETRAINING_STEPS, progress=False, **drawn)
        processor.save_pretrained(folder)
        tuned.save_pretrained(folder)
    return folder


def make_dataset(
    rng: np.random.Generator, rows: Sequence[Row], names: Sequence[str], style: world.Style = "shifted"
) -> Dataset:
    """Images of these rows, shuffled, with the columns image, label and group."""
    rows = [rows[index] for index in rng.permutation(len(rows))]

    def png(row: Row) -> dict[str, bytes | None]:
        color = row.color or list(COLORS)[rng.integers(len(COLORS))]
        buffer = io.BytesIO()
        image = world.draw_image(rng, row.shape, row.background, style, COLORS[color])
        image.save(buffer, "PNG", compress_level=1)
        return {"bytes": buffer.getvalue(), "path": None}

    return Dataset.from_dict(
        {
            "image": [png(row) for row in rows],
            "label": [row.label for row in rows],
            "group": [row.group for row in rows],
        },
        features=Features(image=Image(), label=ClassLabel(names=list(names)), group=Value("string")),
    )


def _group(shape: str, place: str) -> str:
    return f"{kind_of(shape)} on {place}"


def train_split(correlation: float, replicate: int) -> Dataset:
    """Sixty classes; of every shape this fraction of the images is at home."""
    rng, rows = np.random.default_rng((21, replicate)), []
    for shape in TRAINED:
        home = HOMES[kind_of(shape)]
        away = next(place for place in HOMES.values() if place != home)
        colors = list(COLORS) * PER_CLASS
        at_home = rng.permutation(len(colors)) < round(correlation * len(colors))
        for color, is_home in zip(colors, at_home, strict=True):
            place = home if is_home else away
            rows.append(Row(shape, color, place, FINE.index(f"{color} {shape}"), _group(shape, place)))
    return make_dataset(rng, rows, FINE)


def test_sets(replicate: int) -> dict[str, tuple[Dataset, str | list[str]]]:
    """The trained classes, two group shifts that were never trained on, and six retention sets, with their prompts."""
    places = list(HOMES.values())
    elsewhere = [place for place in BACKGROUNDS if place not in places]
    kinds, shapes, colors = list(KINDS), list(CLASS_NAMES), list(COLORS)
    new_fine = [f"{color} {shape}" for shape in HELD_OUT for color in COLORS]

    def rows_of(
        names: Sequence[str],
        label: Callable[[str, str | None, str], str],
        where: Sequence[str],
        repeats: int,
        own: Sequence[str] = CLASS_NAMES,
        tints: Sequence[str | None] = (None,),
    ) -> tuple[list[Row], Sequence[str]]:
        cells = [(shape, color, place) for shape in own for color in tints for place in where]
        rows = [Row(*cell, names.index(label(*cell)), _group(cell[0], cell[2])) for cell in cells]
        return rows * repeats, names

    def shape_of(shape: str, color: str | None, place: str) -> str:
        return shape

    def fine_name(shape: str, color: str | None, place: str) -> str:
        return f"{color} {shape}"

    def kind(shape: str, color: str | None, place: str) -> str:
        return kind_of(shape)

    def phrase(shape: str, color: str | None, place: str) -> str:
        return BACKGROUND_PHRASES[place][0]

    phrases = [BACKGROUND_PHRASES[place][0] for place in BACKGROUNDS]
    shifted: dict[str, tuple[list[Row], Sequence[str]]] = {
        "fine classes": rows_of(FINE, fine_name, places, 4, TRAINED, colors),
        "common names": rows_of(kinds, kind, places, 40, TRAINED),
        "new classes": rows_of(HELD_OUT, shape_of, places, 120, HELD_OUT),
        "shapes on other backgrounds": rows_of(shapes, shape_of, elsewhere, 8),
    }
    clean = {
        "all shapes, clean": rows_of(shapes, shape_of, BACKGROUNDS, 5),
        "new fine classes, clean": rows_of(new_fine, fine_name, BACKGROUNDS, 2, HELD_OUT, colors),
        "common names, clean": rows_of(kinds, kind, BACKGROUNDS, 5),
        "backgrounds, clean": rows_of(phrases, phrase, BACKGROUNDS, 5),
        "colors, clean": rows_of(colors, lambda _, color, __: str(color), BACKGROUNDS[::2], 1, shapes, colors),
    }
    prompts = {"backgrounds, clean": "a photo of a shape {}.", "colors, clean": "a photo of a {} shape."}
    sets: dict[str, tuple[Dataset, str | list[str]]] = {}
    for number, (name, (rows, names)) in enumerate({**shifted, **clean}.items()):
        style: world.Style = "clean" if name in clean else "shifted"
        rng = np.random.default_rng((22, replicate, number))
        sets[name] = make_dataset(rng, rows, names, style), prompts.get(name, CAPTION_TEMPLATE)
    return sets
