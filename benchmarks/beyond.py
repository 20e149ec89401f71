"""How far conditional alignment and attribution weights hold: `python -m benchmarks.beyond`.

Fine-tunes on the demo's world with every method, by number of classes, correlation, pre-trained model and seed.
Weights are chosen on the validation split, with seeds that are not tested, for each method and number of classes once,
and kept for all correlations and models. What is finished stands in beyond.json and is not run again, so that the run
can be broken off at any time. At the end beyond.md and its plots are written, a page of the documentation.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import AutoProcessor, CLIPModel

from benchmarks.grid_runner import GridCell, Store, add_options, limits_of, made_once, run_all
from starft_hf import compare
from starft_hf.demo.experiment import Setting, run_settings
from starft_hf.demo.pretrain import MODEL_FOLDER, pretrain
from starft_hf.demo.world import BACKGROUND_PHRASES, BACKGROUND_TEMPLATES, CLASS_NAMES, Task, make_split
from starft_hf.objectives.regularizers import AUTO_WEIGHT, get_regularizer
from starft_hf.spuriosity.scorer import Scorer


FOLDER = Path(__file__).parent
RESULTS = FOLDER / "beyond.json"
# Of models that are made and of caches.
WORK = Path(tempfile.gettempdir()) / "starft-beyond"

PARTS = ("choice", "test", "scale", "schedule")

CLASSES = (2, 4, 6, 8)
CORRELATIONS = (0.5, 0.8, 0.95, 1.0)
BASES = ("seed-0", "seed-1", "seed-2")
SEEDS = 5
# Every model with every seed, such that few runs from the beginning have all of both.
RUNS = tuple((BASES[(seed + turn) % len(BASES)], seed) for turn in range(len(BASES)) for seed in range(SEEDS))
# What is chosen on validation: at this correlation, on the model that comes with the package.
CHOICE: dict[str, Any] = {"correlation": 0.95, "base": "seed-0"}
CHOICE_SEEDS = (100, 101)
WEIGHTS = {
    "kl": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
    "star": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
    "conditional": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
    "conditional + attribution": (3.0, 10.0, 30.0, 100.0, 300.0),
}
# Those that are tested with `reg_weight="auto"` as well.
AUTO = ("kl", "conditional")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# The method of `compare` that is run, and what its attribution is made to get wrong.
METHODS = {
    "zero-shot": ("zero-shot", None),
    "FLYP": ("FLYP", None),
    "kl": ("kl", None),
    "star": ("star", None),
    "conditional": ("conditional", None),
    "attribution": ("attribution", None),
    "conditional + attribution": ("conditional + attribution", None),
    "both, 20% of attributes random": ("conditional + attribution", "random"),
    "both, pool misses the bias": ("conditional + attribution", "misses"),
}

# Models of other logit scales: pre-trained at one, or the package's own with another one put in afterwards.
SCALES = {"seed-0": 15, "scale-50": 50, "scale-100": 100, "rescaled-50": 50, "rescaled-100": 100}
SCALE_METHODS = ("kl", "star", "conditional")
SCALE_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)

PER_GROUP = 200
SCORING_SEED = 1000
RANDOM_SHARE = 0.2


@dataclass(frozen=True)
class Cell(GridCell):
    """One fine-tuning, and what it is scored on.

    Attributes:
        part: "choice", "scale" and "linear" are scored on validation, "test" on the test split; "linear" is the
            schedule of reg_weight, which is constant otherwise.
        classes: how many.
        correlation: share of a class's training images at home.
        base: the pre-trained model.
        method: a key of `METHODS`.
        weight: of the regularizer; of "FLYP" in the test the share of fine-tuned weights that "WiSE-FT,
            tuned" takes of the same run.
        seed: of the training images and of the run.
    """

    part: str
    classes: int
    correlation: float
    base: str
    method: str
    weight: float | None
    seed: int


@lru_cache(maxsize=4)
def scoring_split(split: Any, classes: int) -> Dataset:
    """The split that runs are scored on: 200 images of every group, the same for all seeds."""
    return make_split(split, seed=SCORING_SEED, size=4 * PER_GROUP, task=Task(CLASS_NAMES[:classes]))


def train_split(classes: int, correlation: float, seed: int) -> Dataset:
    """The training images of a seed."""
    return make_split("train", seed=seed, correlation=correlation, task=Task(CLASS_NAMES[:classes]))


def pool_of(wrong: str | None) -> list[str]:
    """The demo's templates, or those of the backgrounds that do not occur."""
    planted = [phrase for place in ("grass", "water") for phrase in BACKGROUND_PHRASES[place]]
    return [text for text in BACKGROUND_TEMPLATES if wrong != "misses" or not any(one in text for one in planted)]


def with_random_rows(
    scorer: Scorer, image_embeds: torch.Tensor, logit_scale: float, *, plain: Callable[..., Any], seed: int
) -> dict[str, torch.Tensor]:
    """What the reference sees, but for a share of the images what it sees in some other one."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = plain(scorer, image_embeds, logit_scale)
    chosen = torch.rand(len(image_embeds), generator=generator) < RANDOM_SHARE
    others = torch.randint(len(image_embeds), (len(image_embeds),), generator=generator)
    return {aspect: torch.where(chosen[:, None], shown[others], shown) for aspect, shown in found.items()}


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """Worst group, average and groups of a cell; of a plain run also those of interpolated weights."""
    split = "test" if cell.part == "test" else "validation"
    method, wrong = METHODS[cell.method]
    base = base_folder(cell.base, work)
    folders = {"output_dir": str(work / "output"), "reference_cache_dir": str(work / "features")}
    schedule = {"reg_schedule": "linear"} if cell.part == "linear" else {}
    args = run_settings(Setting(), str(work), **folders, **schedule, disable_tqdm=True, logging_strategy="no")
    plain = cell.method == "FLYP"
    wrong_rows = partial(with_random_rows, plain=Scorer.probabilities, seed=cell.seed)
    start = time.perf_counter()
    with patch.object(Scorer, "probabilities", _method(wrong_rows)) if wrong == "random" else nullcontext():
        report = compare(
            base,
            args,
            train_split(cell.classes, cell.correlation, cell.seed),
            {split: scoring_split(split, cell.classes)},
            methods=[method],
            seeds=[cell.seed],
            settings=None if plain or cell.weight is None else {method: {"reg_weight": cell.weight}},
            alpha=float(cell.weight) if plain and cell.weight is not None else None,
            curve_alphas=SHARES if cell.part == "choice" and plain else (),
            spuriosity=pool_of(wrong),
        )
    found = {**_figures(report.runs[0].results[split]), "seconds": round(time.perf_counter() - start, 2)}
    if cell.part == "choice" and plain:
        found["curve"] = {str(point.alpha): point.worst_group for point in report.runs[0].curve}
    if len(report.runs) > 1:
        found["interpolated"] = _figures(report.runs[1].results[split])
    return found


def _figures(result: Any) -> dict[str, Any]:
    return {
        "worst": result.worst_group_accuracy,
        "average": result.accuracy,
        "groups": dict(result.group_accuracies),
    }


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    """A partial function as one that a class binds."""

    def bound(self: Any, *args: Any) -> Any:
        return function(self, *args)

    return bound


def base_folder(name: str, work: Path) -> Path:
    """The folder of a model, made in the working folder unless it is there: "seed-1", "scale-50", "rescaled-50"."""
    return MODEL_FOLDER if name == "seed-0" else made_once(work / name, partial(_make_base, name))


def _make_base(name: str, folder: Path) -> None:
    kind, number = name.split("-")
    if kind == "seed":
        model, processor = pretrain(int(number), progress=False)
    elif kind == "scale":
        model, processor = pretrain(0, progress=False, logit_scale=float(number))
    else:
        model, processor = CLIPModel.from_pretrained(MODEL_FOLDER), AutoProcessor.from_pretrained(MODEL_FOLDER)
        model.logit_scale.data.fill_(math.log(float(number)))
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


def choice_cells() -> Iterator[Cell]:
    """What weights and shares are chosen by."""
    for classes in CLASSES:
        for seed in CHOICE_SEEDS:
            yield Cell("choice", classes, **CHOICE, method="FLYP", weight=None, seed=seed)
            for method, weights in WEIGHTS.items():
                for weight in weights:
                    yield Cell("choice", classes, **CHOICE, method=method, weight=weight, seed=seed)


def chosen(store: Store, classes: int, method: str) -> float | None:
    """The weight, of FLYP the share, with the best worst group on validation, over the seeds of the choice."""
    base = METHODS[method][0]
    if method == "FLYP":
        cells = [Cell("choice", classes, **CHOICE, method="FLYP", weight=None, seed=seed) for seed in CHOICE_SEEDS]
        return max(SHARES, key=lambda share: fmean(store[cell]["curve"][str(share)] for cell in cells))
    if base not in WEIGHTS:
        return None

    def worst(weight: float) -> float:
        cells = [Cell("choice", classes, **CHOICE, method=base, weight=weight, seed=seed) for seed in CHOICE_SEEDS]
        return fmean(store[cell]["worst"] for cell in cells)

    return max(WEIGHTS[base], key=worst)


def auto(classes: int, method: str) -> float:
    """What `reg_weight="auto"` takes."""
    regularizer = get_regularizer(method)
    assert regularizer is not None
    return regularizer.weight(AUTO_WEIGHT, classes)


def test_cells(store: Store, run: tuple[str, int]) -> Iterator[Cell]:
    """What is tested of a pre-trained model and a seed, with the weights that were chosen.

    Args:
        store: with the cells of the choice.
        run: one of `RUNS`.
    """
    base, seed = run
    first = run == next(other for other in RUNS if other[0] == base)
    for classes in CLASSES:
        for correlation in CORRELATIONS:
            for method in METHODS:
                # Zero-shot depends on neither the seed nor the correlation.
                if method != "zero-shot" or (first and correlation == CHOICE["correlation"]):
                    yield Cell("test", classes, correlation, base, method, chosen(store, classes, method), seed)


def auto_cells(run: tuple[str, int]) -> Iterator[Cell]:
    """The same with `reg_weight="auto"`; where that is the weight that was chosen, it is the same cell."""
    for method in AUTO:
        for classes in CLASSES:
            for correlation in CORRELATIONS:
                yield Cell("test", classes, correlation, run[0], method, auto(classes, method), run[1])


def schedule_cells(part: str) -> Iterator[Cell]:
    """`reg_weight="auto"` under the schedule of the comparison ("choice") or one that falls to 0 ("linear")."""
    for classes in CLASSES:
        for method in SCALE_METHODS:
            for seed in CHOICE_SEEDS:
                yield Cell(part, classes, **CHOICE, method=method, weight=auto(classes, method), seed=seed)


def complete_runs(store: Store) -> list[tuple[str, int]]:
    """Those of `RUNS` of which everything is in the store."""
    return [run for run in RUNS if all(cell in store for cell in (*test_cells(store, run), *auto_cells(run)))]


def scale_cells() -> Iterator[Cell]:
    """Weights by logit scale."""
    for base in SCALES:
        for method in SCALE_METHODS:
            for weight in SCALE_WEIGHTS:
                for seed in CHOICE_SEEDS:
                    yield Cell("scale", 6, CHOICE["correlation"], base, method, weight, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beyond", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=len(RUNS), help="pairs of a model and a seed, of %(default)s")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS)
    parser.add_argument("--work", type=Path, default=WORK, help="models and caches")
    parser.add_argument("--output", type=Path, default=FOLDER.parent / "docs", help="folder of the page")
    add_options(parser, RESULTS, processes=2)
    options = parser.parse_args(arguments)
    store = Store(options.results)
    each: dict[str, Callable[[], Iterable[Cell]]] = {
        "choice": choice_cells,
        "test": lambda: (cell for run in RUNS[: options.runs] for cell in (*test_cells(store, run), *auto_cells(run))),
        "scale": scale_cells,
        "schedule": lambda: chain(schedule_cells("choice"), schedule_cells("linear")),
    }
    for part in () if options.report else options.only:
        run_all(each[part](), partial(run_cell, work=options.work), store, what=part, **limits_of(options))
    from benchmarks.beyond_report import write_report

    write_report(store, options.output)


if __name__ == "__main__":
    main()
