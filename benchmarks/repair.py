"""Whether to train robustly, to repair, or both: `python -m benchmarks.repair`.

Fine-tunes on the demo's world without a regularizer (FLYP) and with kl at the weight "auto", by number of classes,
correlation, pre-trained model and seed. Then `repair` chooses on balanced validation sets of several sizes, and on one
that is drawn as the training set is and has no groups, by the worst class and among all methods. What it chose, and
the best candidate of each method, is scored on a balanced test set. Finished cells stand in repair.json and are not
run again. At the end REPAIR.md is written.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoProcessor, CLIPModel

from benchmarks.beyond import CORRELATIONS, RUNS, WORK, base_folder, train_split
from benchmarks.grid_runner import GridCell, Store, add_options, limits_of, run_all
from starft_hf import SpuriosityPool, StarFTTrainer
from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.demo.experiment import Setting, run_settings
from starft_hf.demo.world import BACKGROUND_TEMPLATES, CAPTION_TEMPLATE, CLASS_NAMES, Task, make_split
from starft_hf.weights.repair.candidates import ALPHAS, candidates
from starft_hf.weights.repair.embedded import Embedded, Repair
from starft_hf.weights.repair.embedding import Embedder, ImageReading, embed
from starft_hf.weights.repair.groups import indices_of
from starft_hf.weights.repair.selection import choose
from starft_hf.weights.repair.subject import Subject


FOLDER = Path(__file__).parent
RESULTS = FOLDER / "repair.json"

CLASSES = (6, 2, 8, 4)
METHODS = {"FLYP": "none", "kl": "kl"}
SIZES = (24, 48, 96, 396)
LARGEST = max(SIZES)
TEST_SIZE = 800
# Of the validation and test sets, which are not those of the other benchmarks.
SEED = 2000


@dataclass(frozen=True)
class Cell(GridCell):
    """A task, a pre-trained model and a seed: both fine-tunings and all repairs of them."""

    classes: int
    correlation: float
    base: str
    seed: int


def cells(runs: int = len(RUNS)) -> Iterator[Cell]:
    """All cells of the first runs, in the order they are run."""
    for run in RUNS[:runs]:
        for classes in CLASSES:
            for correlation in CORRELATIONS[::-1]:
                yield Cell(classes, correlation, *run)


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """The figures of a cell, by what was trained."""
    folder = base_folder(cell.base, work)
    task = Task(CLASS_NAMES[: cell.classes])
    seed = SEED + cell.seed
    sets = {
        "test": make_split("test", seed=seed, size=TEST_SIZE, task=task),
        "balanced": make_split("validation", seed=seed, size=LARGEST, task=task),
        "as trained": make_split("train", seed=seed, size=LARGEST, correlation=cell.correlation, task=task),
    }
    found = {}
    for method, regularizer in METHODS.items():
        start = time.perf_counter()
        subject = fine_tuned(folder, regularizer, cell, work)
        trained = time.perf_counter()
        found[method] = {**repairs(subject, sets, cell.seed, work), "training_seconds": round(trained - start, 2)}
        found[method]["repair_seconds"] = round(time.perf_counter() - trained, 2)
    return found


def fine_tuned(folder: Path, regularizer: str, cell: Cell, work: Path) -> Subject:
    """The fine-tuned model with its start."""
    model, start = (CLIPModel.from_pretrained(folder) for _ in range(2))
    processor = AutoProcessor.from_pretrained(folder)
    own = {} if regularizer == "none" else {"reference_cache_dir": str(work / "features"), "reg_weight": "auto"}
    args = run_settings(
        Setting(),
        str(work),
        **own,
        regularizer=regularizer,
        seed=cell.seed,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    pool = list(BACKGROUND_TEMPLATES)
    train = train_split(cell.classes, cell.correlation, cell.seed)
    StarFTTrainer(model, args, train, processing_class=processor, spuriosity=pool).train()
    names = CLASS_NAMES[: cell.classes]
    return Subject(model, processor, names, (CAPTION_TEMPLATE,), None, start, None, SpuriosityPool(pool))


def repairs(subject: Subject, sets: dict[str, Dataset], seed: int, work: Path) -> dict[str, Any]:
    """What the model as it is, its start, and repairs chosen on every validation set reach on the test set."""
    data = {name: embedded(subject, rows, work) for name, rows in sets.items()}
    test = data["test"]
    found: dict[str, Any] = {"none": figures(test, Repair()), "zero-shot": figures(test, Repair(alpha=0.0))}
    for size in SIZES:
        found[f"balanced {size}"] = chosen(balanced(data["balanced"], size, seed), test)
    natural = data["as trained"]
    found["as trained"] = chosen(replace(natural, groups=natural.labels), test)
    return found


def embedder_of(subject: Subject, rows: Dataset, work: Path) -> Embedder:
    """What embeds a dataset, with caches in the working folder."""
    columns = resolve_evaluation_columns(rows, ColumnSettings(), what="dataset")
    reading = ImageReading(batch_size=256, image_cache=work / "images", cache_dir=work / "features", progress=False)
    return Embedder(subject, rows, columns, reading)


def embedded(subject: Subject, rows: Dataset, work: Path) -> Embedded:
    """A dataset by the model, its start and the interpolations, with the groups of its column."""
    embedder = embedder_of(subject, rows, work)
    groups = indices_of(rows["group"])[0]
    return replace(embed(subject, embedder, np.array(rows["label"]), ALPHAS), groups=groups)


def balanced(data: Embedded, size: int, seed: int) -> Embedded:
    """As many images of every group, and within it of every class, as a validation set of this size has."""
    generator = np.random.default_rng((seed, size))
    order = generator.permutation(len(data.labels))
    cells = np.unique(np.stack([data.groups, data.labels]), axis=1, return_inverse=True)[1].reshape(-1)[order]
    # The rank of every image in its cell, so that the first of all cells come before the second of any.
    ranks = np.array([(cells[:place] == cell).sum() for place, cell in enumerate(cells)])
    groups = data.groups[order]
    chosen_rows = []
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        own = own[np.argsort(ranks[own], kind="stable")][: size // len(np.unique(groups))]
        chosen_rows.append(order[own])
    rows = np.sort(np.concatenate(chosen_rows))
    return replace(
        data,
        images=data.images[rows],
        labels=data.labels[rows],
        groups=data.groups[rows],
        mixed={alpha: logits[rows] for alpha, logits in data.mixed.items()},
        start_logits=None if data.start_logits is None else data.start_logits[rows],
    )


def chosen(data: Embedded, test: Embedded) -> dict[str, Any]:
    """What `repair` chooses, and the best candidate of each method by cross-validation, on the test set."""
    each = candidates(data)
    choice = choose(data, each)
    rows = np.arange(len(data.labels))
    best: dict[str, int] = {}
    for index, candidate in enumerate(each):
        known = best.get(candidate.method)
        if known is None or choice.scores[index].worst_group > choice.scores[known].worst_group:
            best[candidate.method] = index
    methods = {name: figures(test, each[index].fit(data, rows)) for name, index in best.items()}
    taken = each[choice.chosen]
    return {
        "chosen": {"method": taken.method, "settings": dict(taken.settings), **figures(test, taken.fit(data, rows))},
        "best": each[choice.best].method,
        "gain": round(choice.gain, 4),
        "standard_error": round(choice.standard_error, 4),
        "methods": methods,
    }


def figures(test: Embedded, repair: Repair) -> dict[str, float]:
    """Worst group and average on the test set."""
    right = test.logits(repair).argmax(1) == test.labels
    worst = min(right[test.groups == group].mean() for group in np.unique(test.groups))
    return {"worst": round(float(worst), 4), "average": round(float(right.mean()), 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not in the store yet, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repair", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=len(RUNS), help="pairs of a model and a seed, of %(default)s")
    parser.add_argument("--work", type=Path, default=WORK, help="for models and caches")
    add_options(parser, RESULTS)
    options = parser.parse_args(arguments)
    store = Store(options.results)
    if not options.report:
        run_all(cells(options.runs), partial(run_cell, work=options.work), store, what="cells", **limits_of(options))
    from benchmarks.repair_report import write_report

    write_report(store, FOLDER / "REPAIR.md")


if __name__ == "__main__":
    main()
