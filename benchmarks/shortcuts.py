"""Several shortcuts at once, some that no template names: `python -m benchmarks.shortcuts`.

Plants up to three of five shortcuts in the demo's world, and counts what `discover_spuriosity` finds and what it
should not have found; then plants four, fine-tunes with every method, and measures the worst group by each of them.
What is finished stands in shortcuts.json and is not run again. At the end SHORTCUTS.md and its plot are written. What
was expected was written down before: several_shortcuts_hypotheses.md.
"""

import argparse
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoProcessor, CLIPModel

from benchmarks.beyond import BASES, WORK, base_folder
from benchmarks.grid_runner import GridCell, Store, add_options, limits_of, run_all
from starft_hf import SpuriosityPool, compare, discover_spuriosity
from starft_hf.demo.experiment import Setting, run_settings
from starft_hf.demo.world import (
    BACKGROUND_PHRASES,
    BACKGROUND_TEMPLATES,
    CLASS_NAMES,
    COLORS,
    UNRELATED_TEMPLATES,
    draw_image,
)
from starft_hf.spuriosity.result import DiscoveryResult
from starft_hf.spuriosity.statistics import measure_associations


FOLDER = Path(__file__).parent
RESULTS = FOLDER / "shortcuts.json"

# The classes whose images usually show a shortcut, by the bits of their index: any two halves have half of their
# classes in common, so that no shortcut predicts another one.
HALVES: dict[str, Callable[[int], int]] = {
    "background": lambda index: index & 1,
    "border": lambda index: index >> 1 & 1,
    "tint": lambda index: index >> 2 & 1,
    "JPEG": lambda index: (index ^ index >> 1 ^ index >> 2) & 1,
    "color": lambda index: (index ^ index >> 1) & 1,
}
SHORTCUTS = tuple(HALVES)
NAMED = ("background", "color")
UNNAMED = tuple(name for name in SHORTCUTS if name not in NAMED)
# What an image shows without a shortcut and with it.
PLACES = ("grass", "water")
INKS = ("maroon", "navy")

COLOR_TEMPLATES = tuple(f"{{}} in {color}." for color in COLORS)
POOL = SpuriosityPool(
    [*BACKGROUND_TEMPLATES, *COLOR_TEMPLATES, *UNRELATED_TEMPLATES],
    name="world",
    aspects=[
        *["background"] * len(BACKGROUND_TEMPLATES),
        *["color"] * len(COLOR_TEMPLATES),
        *["unrelated"] * len(UNRELATED_TEMPLATES),
    ],
)
# Templates that name what is planted.
NAMING = {
    "background": {f"{{}} {phrase}." for place in PLACES for phrase in BACKGROUND_PHRASES[place]},
    "color": {f"{{}} in {color}." for color in INKS},
}

PER_CLASS = 60
DRAWS = 200
STRENGTHS = (0.95, 0.8)
MOST_PLANTED = 3

PLANTED_FOR_REPAIR = ("background", "border", "tint", "JPEG")
REPAIR_STRENGTH = 0.95
REPLICATES = 12
PER_GROUP = 8
AUTO = {"reg_weight": "auto", "reg_schedule": "constant"}
# The method of `compare`, its settings and its pool.
METHODS: dict[str, tuple[str, dict[str, Any], Sequence[str]]] = {
    "zero-shot": ("zero-shot", {}, BACKGROUND_TEMPLATES),
    "FLYP": ("FLYP", {}, BACKGROUND_TEMPLATES),
    "kl, auto": ("kl", AUTO, BACKGROUND_TEMPLATES),
    "star, auto": ("star", AUTO, BACKGROUND_TEMPLATES),
    "kl, auto, unrelated pool": ("kl", AUTO, UNRELATED_TEMPLATES),
    "attribution": ("attribution", {}, BACKGROUND_TEMPLATES),
}


def draw(rng: np.random.Generator, shape: str, shown: dict[str, bool]) -> PILImage.Image:
    """A shape in the shifted style, with the shortcuts that are shown."""
    image = draw_image(rng, shape, PLACES[shown["background"]], "shifted", INKS[shown["color"]])
    pixels = np.asarray(image, dtype=np.float64)
    # Warm or cold light.
    pixels = (pixels * ((1.12, 1, 0.88) if shown["tint"] else (0.88, 1, 1.12))).clip(0, 255).astype(np.uint8)
    if shown["border"]:
        pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = 250, 250, 250, 250
    image = PILImage.fromarray(pixels)
    if shown["JPEG"]:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=10)
        image = PILImage.open(buffer).convert("RGB")
    return image


def training_rows(
    rng: np.random.Generator, planted: Sequence[str], strength: float
) -> list[tuple[int, dict[str, bool]]]:
    """Classes and shortcuts of training images: exact fractions within every class, and independent of each other."""
    rows = []
    for index in range(len(CLASS_NAMES)):
        columns = {}
        for name, half in HALVES.items():
            fraction = 0.5 if name not in planted else strength if half(index) else 1 - strength
            columns[name] = rng.permutation(np.arange(PER_CLASS) < round(fraction * PER_CLASS))
        rows += [(index, {name: bool(column[row]) for name, column in columns.items()}) for row in range(PER_CLASS)]
    return rows


def group_of(index: int, shown: dict[str, bool]) -> str:
    """The class and which of the shortcuts of the repair an image shows."""
    return " ".join([CLASS_NAMES[index], *(str(int(shown[name])) for name in PLANTED_FOR_REPAIR)])


def make_dataset(rng: np.random.Generator, rows: Sequence[tuple[int, dict[str, bool]]]) -> Dataset:
    """Images of these rows, shuffled, with the columns image, label and group."""
    rows = [rows[place] for place in rng.permutation(len(rows))]

    def png(index: int, shown: dict[str, bool]) -> dict[str, bytes | None]:
        buffer = io.BytesIO()
        draw(rng, CLASS_NAMES[index], shown).save(buffer, "PNG", compress_level=1)
        return {"bytes": buffer.getvalue(), "path": None}

    return Dataset.from_dict(
        {
            "image": [png(*row) for row in rows],
            "label": [index for index, _ in rows],
            "group": [group_of(*row) for row in rows],
        },
        features=Features(image=Image(), label=ClassLabel(names=list(CLASS_NAMES)), group=Value("string")),
    )


@dataclass(frozen=True)
class Search(GridCell):
    """A training set that is searched; `draw` is its number, and that of what is planted."""

    planted: int
    strength: float
    draw: int

    @property
    def names(self) -> tuple[str, ...]:
        """What is planted: every subset of that size, in turn."""
        subsets = list(itertools.combinations(SHORTCUTS, self.planted))
        return subsets[self.draw % len(subsets)]

    @property
    def base(self) -> str:
        """The pre-trained model."""
        return BASES[len(BASES) * self.draw // DRAWS]


@dataclass(frozen=True)
class Cell(GridCell):
    """One fine-tuning where four shortcuts are planted; a replicate has images of its own."""

    method: str
    replicate: int

    @property
    def base(self) -> str:
        """The pre-trained model."""
        return BASES[len(BASES) * self.replicate // REPLICATES]


def searches() -> Iterator[Search]:
    """All training sets that are searched, such that few from the beginning have all conditions."""
    for number in range(DRAWS):
        yield Search(0, 0.5, number)
        for planted in range(1, 1 + MOST_PLANTED):
            for strength in STRENGTHS:
                yield Search(planted, strength, number)


@lru_cache
def loaded(base: str, work: Path) -> tuple[Any, Any]:
    """A pre-trained model and its processor."""
    folder = base_folder(base, work)
    return CLIPModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def run_search(search: Search, work: Path) -> dict[str, Any]:
    """What is found: the planted shortcuts that attributes name, and the names of other attributes."""
    rng = np.random.default_rng((31, search.planted, round(100 * search.strength), search.draw))
    images = make_dataset(rng, training_rows(rng, search.names, search.strength))
    result = discover_spuriosity(*loaded(search.base, work), images, POOL, seed=search.draw, progress=False)
    shuffled = with_labels(result, rng.permutation(result.labels))
    found: dict[str, Any] = {"planted": list(search.names), "named": [], "others": []}
    for index in result.found:
        attribute = result.attributes[index]
        templates = {POOL[place] for place in attribute.templates}
        named = [name for name in NAMED if name in search.names and templates & NAMING[name]]
        found["named" if named else "others"] += named or [attribute.name]
    return {**found, "shuffled": [shuffled.attributes[index].name for index in shuffled.found]}


def with_labels(result: DiscoveryResult, labels: np.ndarray) -> DiscoveryResult:
    """The result, had the images these labels."""
    associations = measure_associations(
        labels,
        list(result.assigned.values()),
        len(result.class_names),
        len(result.attributes),
        permutations=result.settings.permutations,
        seed=result.settings.seed,
    )
    return replace(result, labels=labels, associations=associations)


@lru_cache(maxsize=1)
def repair_splits(replicate: int) -> tuple[Dataset, Dataset]:
    """The training and the test images of a replicate; in the latter all shortcuts occur with all classes alike."""
    rng = np.random.default_rng((32, replicate))
    train = make_dataset(rng, training_rows(rng, PLANTED_FOR_REPAIR, REPAIR_STRENGTH))
    rows = [
        (index, {**dict(zip(PLANTED_FOR_REPAIR, shown, strict=True)), "color": bool(number % 2)})
        for index in range(len(CLASS_NAMES))
        for shown in itertools.product([False, True], repeat=len(PLANTED_FOR_REPAIR))
        for number in range(PER_GROUP)
    ]
    return train, make_dataset(rng, rows)


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """The average of a cell, and for every shortcut the accuracies of its four groups."""
    train, test = repair_splits(cell.replicate)
    method, settings, pool = METHODS[cell.method]
    with tempfile.TemporaryDirectory() as folder:
        report = compare(
            base_folder(cell.base, work),
            run_settings(Setting(), folder, disable_tqdm=True, logging_strategy="no"),
            train,
            {"test": test},
            methods=[method],
            seeds=[cell.replicate],
            settings={method: settings} if settings else None,
            alpha=None,
            spuriosity=list(pool),
        )
    result = report.runs[0].classified["test"]
    by_shortcut = {}
    for place, name in enumerate(PLANTED_FOR_REPAIR):
        # All groups are of the same size.
        parts: dict[str, list[float]] = {}
        for group, accuracy in result.group_accuracies.items():
            shape, *shown = group.split()
            half = HALVES[name](CLASS_NAMES.index(shape))
            parts.setdefault(f"{'with' if half else 'without'}, shown {shown[place]}", []).append(accuracy)
        by_shortcut[name] = {group: round(float(np.mean(own)), 6) for group, own in sorted(parts.items())}
    return {"average": round(result.accuracy, 6), "groups": by_shortcut}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shortcuts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=("discovery", "repair"), default=("discovery", "repair"))
    parser.add_argument("--draws", type=int, default=DRAWS, help="training sets of every kind that are searched")
    parser.add_argument("--replicates", type=int, default=REPLICATES, help="of the repair")
    parser.add_argument("--work", type=Path, default=WORK, help="for models")
    add_options(parser, RESULTS)
    options = parser.parse_args(arguments)
    store, work = Store(options.results), options.work
    parts = () if options.report else options.only
    if "repair" in parts:
        cells = (Cell(method, number) for number in range(options.replicates) for method in METHODS)
        run_all(cells, partial(run_cell, work=work), store, what="repair", **limits_of(options))
    if "discovery" in parts:
        drawn = (search for search in searches() if search.draw < options.draws)
        run_all(drawn, partial(run_search, work=work), store, what="discovery", **limits_of(options))
    from benchmarks.shortcuts_report import write_report

    write_report(store, options.results.parent)


if __name__ == "__main__":
    main()
