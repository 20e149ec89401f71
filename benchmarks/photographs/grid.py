"""The grid: cells of a model, a draw, a task and a method, each fine-tuned and evaluated once and kept."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset

from benchmarks.grid_runner import GridCell, Store, run_all
from benchmarks.photographs.methods import BUILT_IN, METHODS, POOLS, Method, default_plain_share, default_regularizer
from benchmarks.photographs.models import PIXELS, folder_of, zero_shot_accuracies
from benchmarks.photographs.world import CAPTION_TEMPLATE, make_split
from starft_hf import StarFTConfig, compare


ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Draws that weights are chosen on are not tested.
CHOICE_DRAWS = (100, 101)
CHOICE_CORRELATION = 0.95
TESTED = {"test": "test", "new": "new individuals", "held_out": "held-out classes"}
# Learning rate, steps and images per step, and rows of the splits, by kind of model.
TASKS = {
    "A": {"learning_rate": 4e-4, "max_steps": 100, "per_device_train_batch_size": 64},
    "B": {"learning_rate": 1e-4, "max_steps": 80, "per_device_train_batch_size": 32},
}
SIZES = {
    "A": {"train": 480, "validation": 480, "test": 960, "new": 480, "held_out": 480},
    "B": {"train": 480, "validation": 240, "test": 480, "new": 240, "held_out": 240},
}


@dataclass(frozen=True)
class Cell(GridCell):
    """One fine-tuning and what it is evaluated on.

    Attributes:
        part: "choice" is evaluated on validation, "test" on what is reported.
        model: of `benchmarks.photographs.models.MODELS`.
        draw: the content of the splits, the images and the seed of the run.
        classes: 2 or 6.
        correlation: fraction of a class's training images at home.
        method: a key of `METHODS`.
        weight: of the regularizer, if it was chosen; for FLYP in a test that of the fine-tuned model in WiSE-FT.
    """

    part: str
    model: str
    draw: int
    classes: int
    correlation: float
    method: str
    weight: float | None


def task_settings(model: str, folder: str, **more: Any) -> StarFTConfig:
    """The settings of a run on this world; `more` takes precedence."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "reg_schedule": "constant",
        "reference_cache_dir": folder,
        "warmup_steps": 0,
        "max_grad_norm": 0,
        "per_device_eval_batch_size": 120,
        "caption_template": CAPTION_TEMPLATE,
        "group_column": "group",
        "crop_scale": None,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        **TASKS[model[0]],
    }
    return StarFTConfig(**settings | more)


def split_of(cell: Cell, split: str) -> Dataset:
    """A split of a cell; held-out classes are those beyond the first six."""
    rows, pixels = SIZES[cell.model[0]][split], PIXELS[cell.model]
    classes = 6 if split == "held_out" else cell.classes
    shared: dict[str, Any] = {"draw": cell.draw, "classes": classes, "pixels": pixels, "size": rows}
    return make_split(split, correlation=cell.correlation, **shared)


def pool_of(cell: Cell, method: Method, folder: str) -> tuple[Any, dict[str, Any]]:
    """The pool of a cell as `compare` takes it, and the settings that go with it."""
    pool = method.pool
    if pool == "built-in":
        pool = "right" if cell.model.startswith("A") else None
    if pool == "found":
        file = Path(folder) / "candidates.json"
        file.write_text(json.dumps([*POOLS["right"], *POOLS["unrelated"]]))
        return "auto", {"discovery_pool": str(file)}
    return list(POOLS[pool]) if pool else BUILT_IN, {}


def run_cell(cell: Cell) -> dict[str, Any]:
    """Worst group, average and groups on every split that the cell is evaluated on; of FLYP also interpolated."""
    method = METHODS[cell.method]
    name = default_regularizer(cell.classes) if method.name == "default" else method.name
    choice, plain = cell.part == "choice", cell.method == "FLYP"
    splits = {"validation": "validation"} if choice else dict(TESTED)
    if name == "CE":
        # Its head has no other classes.
        splits.pop("held_out", None)
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        pool, settings = pool_of(cell, method, folder)
        settings = {**method.settings, **settings}
        if method.name == "default":
            share = default_plain_share(cell.classes) if method.plain is None else method.plain
            settings["plain_caption_share"] = share
        if cell.weight is not None and not plain:
            settings["reg_weight"] = cell.weight
        report = compare(
            folder_of(cell.model),
            task_settings(cell.model, folder),
            split_of(cell, "train"),
            {what: split_of(cell, split) for split, what in splits.items()},
            methods=[f"{name} + repair" if method.repaired else name],
            seeds=[cell.draw],
            settings={name: settings} if settings else None,
            alpha=cell.weight if plain and not choice else None,
            curve_alphas=ALPHAS if plain and choice else (),
            spuriosity=pool,
            repair_dataset=split_of(cell, "validation") if method.repaired else None,
            repair_cluster_column=method.clusters,
        )
    found = _figures(report.runs[0])
    if plain and choice:
        points = (astuple(point) for point in report.runs[0].curve)
        found["curve"] = {str(alpha): round(worst, 4) for alpha, _, worst in points}
    if len(report.runs) > 1:
        found["interpolated"] = _figures(report.runs[1])
    found["seconds"] = [round(time.perf_counter() - start, 1), round(time.process_time() - cpu, 1)]
    return found


def _figures(run: Any) -> dict[str, Any]:
    return {
        what: {
            "worst": round(result.worst_group_accuracy, 4),
            "average": round(result.accuracy, 4),
            "groups": {group: round(value, 4) for group, value in result.group_accuracies.items()},
        }
        for what, result in run.results.items()
    }


def choice_cells(model: str, classes: int, methods: Sequence[str]) -> Iterator[Cell]:
    """What the weights of some methods are chosen by; for FLYP, that of the fine-tuned model in WiSE-FT."""
    for draw in CHOICE_DRAWS[: 1 if model == "B" else None]:
        for name in dict.fromkeys(METHODS[name].chosen_as or name for name in methods):
            for weight in [None] if name == "FLYP" else METHODS[name].weights.get(classes, ()):
                yield Cell("choice", model, draw, classes, CHOICE_CORRELATION, name, weight)


def chosen(store: Store, model: str, classes: int, name: str) -> float | None:
    """The weight with the best worst group on validation, mean over the draws of the choice; None without a choice.

    For models A, it is chosen with the first of them. Of equal ones the first is taken.
    """
    name = METHODS[name].chosen_as or name
    cells = list(choice_cells("A0" if model.startswith("A") else model, classes, [name]))
    if name == "FLYP":
        return max(ALPHAS, key=lambda alpha: fmean(store[cell]["curve"][str(alpha)] for cell in cells))
    found: dict[Any, list[float]] = {}
    for cell in cells:
        found.setdefault(cell.weight, []).append(store[cell]["validation"]["worst"])
    return max(found, key=lambda weight: fmean(found[weight]), default=None)


def test_cell(store: Store, run: tuple[str, int], classes: int, correlation: float, name: str) -> Cell:
    """The test of a method with its chosen weight, on a model and a draw."""
    model, draw = run
    # The zero-shot model does not depend on the training images.
    correlation = CHOICE_CORRELATION if name == "zero-shot" else correlation
    return Cell("test", model, draw, classes, correlation, name, chosen(store, model, classes, name))


def check_cell(model: str) -> Cell:
    """Under which the accuracies of a model on clean images are kept."""
    return Cell("check", model, 0, 12, 0.5, "zero-shot", None)


def run_check(model: str, store: Store) -> None:
    """Keep what a model can do before it is fine-tuned."""
    if check_cell(model) not in store:
        store.add(check_cell(model), zero_shot_accuracies(model))


def run_cells(cells: Sequence[Cell], store: Store, processes: int, what: str) -> None:
    """Run what is not in the store yet, after making the models that it needs."""
    for model in dict.fromkeys(cell.model for cell in cells if cell not in store):
        folder_of(model)
    run_all(cells, run_cell, store, what=what, processes=processes)
