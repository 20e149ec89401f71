"""Whether the defaults do harm, and what forgives a wrong weight: `python -m benchmarks.defaults`.

Fine-tunes on the demo's world with `StarFTConfig` as it is (warm-up, clipping, random crops), and with variations of
its regularizer, by number of classes, correlation, learning rate, logit scale, batch size, pre-trained model and seed.
What is finished stands in defaults.json and is not run again, so that the run can be broken off at any time. At the
end DEFAULTS.md is written.
"""

import argparse
import dataclasses
import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from benchmarks.beyond import FOLDER, WORK, base_folder, scoring_split, train_split
from benchmarks.grid_runner import GridCell, Store, add_options, limits_of, run_all
from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.demo.world import BACKGROUND_TEMPLATES
from starft_hf.evaluation.results import classification_results
from starft_hf.objectives.regularizers import AUTO_WEIGHT, get_regularizer
from starft_hf.training import step as training_step
from starft_hf.training.plain_captions import FEW_CLASSES


RESULTS = FOLDER / "defaults.json"

CLASSES = (2, 3, 4, 6, 8)
CORRELATIONS = (0.5, 0.8, 0.95, 1.0)
# The learning rate and the number of steps: about as much learning rate in all.
CENTER = (4e-4, 100)
RATES = ((1e-4, 400), (2e-4, 200), (1e-5, 3000))
# With as many images in all.
BATCHES = ((32, 200), (128, 50), (256, 25))
SCALES = ("scale-50", "scale-100", "rescaled-50", "rescaled-100")
# From so many classes on, the defaults have no plain captions.
MANY = FEW_CLASSES + 1
FEW = tuple(classes for classes in CLASSES if classes < MANY)
NEAREST = "term 1"
BASES = ("seed-0", "seed-1", "seed-2")
VALIDATION_SEEDS = (100, 101)
TEST_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Form:
    """A regularizer in place of the default one.

    Attributes:
        regularizer: "auto", "star" or "kl".
        factor: times the weight that "auto" stands for.
        share: of plain captions, "{}.", among the spurious ones; None is that of `StarFTConfig`.
        term: weight of a term of its own for plain captions, relative to the weight of the regularizer.
        tolerance: divergence in nats up to which that term is 0.
    """

    regularizer: str = "auto"
    factor: float = 1.0
    share: float | None = 0.0
    term: float = 0.0
    tolerance: float = 0.0


FORMS = {
    "default": Form(share=None),
    "plain 0": Form(),
    "plain 0 x 2": Form(factor=2),
    "plain 0 x 0.3": Form(factor=0.3),
    "kl": Form("kl"),
    "kl x 2": Form("kl", 2),
    "plain 0.1": Form(share=0.1),
    "plain 0.25": Form(share=0.25),
    "plain 0.5": Form(share=0.5),
    "plain 0.25 x 2": Form(share=0.25, factor=2),
    "plain 0.25 x 0.3": Form(share=0.25, factor=0.3),
    "plain 0.5 x 0.3": Form(share=0.5, factor=0.3),
    "kl, plain 0.25": Form("kl", share=0.25),
    "kl, plain 0.5": Form("kl", share=0.5),
    "term 0.3": Form(term=0.3),
    "term 1": Form(term=1),
    "term 1 x 0.3": Form(term=1, factor=0.3),
    "term 1 above 0.05": Form(term=1, tolerance=0.05),
}

# Those that long runs compare.
LONG = ("default", "plain 0", "plain 0.1", "plain 0.25", "plain 0.5")


@dataclass(frozen=True)
class Cell(GridCell):
    """One fine-tuning, and what it is scored on.

    Attributes:
        split: "validation" or "test".
        classes: how many.
        correlation: share of a class's training images at home.
        base: the pre-trained model, as in `benchmarks.beyond`.
        learning_rate, steps, batch: of the run; a zero-shot model has none.
        method: "zero-shot", "FLYP" or a key of `FORMS`.
        seed: of the training images and of the run.
    """

    split: str
    classes: int
    correlation: float
    method: str
    seed: int
    base: str = "seed-0"
    learning_rate: float = CENTER[0]
    steps: int = CENTER[1]
    batch: int = 64

    @property
    def start(self) -> "Cell":
        """The zero-shot model it starts from."""
        return Cell(self.split, self.classes, CORRELATIONS[0], "zero-shot", 0, self.base, 0.0, 0, 0)

    def by(self, method: str, seed: int | None = None) -> "Cell":
        """The same with another method."""
        return dataclasses.replace(self, method=method, seed=self.seed if seed is None else seed)


def regularizer_settings(form: Form, classes: int) -> dict[str, Any]:
    """The settings of a form, by name."""
    share = {} if form.share is None else {"plain_caption_share": form.share}
    if form.regularizer == "auto" and form.factor == 1:
        return share
    regularizer = get_regularizer(form.regularizer, classes)
    assert regularizer is not None
    weight = form.factor * regularizer.weight(AUTO_WEIGHT, classes)
    return {"regularizer": form.regularizer, "reg_weight": weight, **share}


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """Worst group, average and groups of a cell, and the divergences in its last ten steps."""
    base = base_folder(cell.base, work)
    form = FORMS.get(cell.method, Form())
    settings = {"regularizer": "none"} if cell.method == "FLYP" else regularizer_settings(form, cell.classes)
    args = StarFTConfig(
        output_dir=str(work / "output"),
        reference_cache_dir=str(work / "features"),
        learning_rate=cell.learning_rate,
        # The zero-shot model is not trained.
        max_steps=cell.steps or 1,
        per_device_train_batch_size=cell.batch or 64,
        per_device_eval_batch_size=256,
        group_column="group",
        seed=cell.seed,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    evaluation = scoring_split(cell.split, cell.classes)
    start = time.perf_counter()
    if cell.method == "zero-shot":
        trainer = StarFTTrainer(base, dataclasses.replace(args, regularizer="none"), eval_dataset=evaluation)
    else:
        train = train_split(cell.classes, cell.correlation, cell.seed)
        pool = "background" if cell.method == "FLYP" else list(BACKGROUND_TEMPLATES)
        trainer = StarFTTrainer(base, args, train, evaluation, spuriosity=pool)
        with with_own_term(trainer, form):
            trainer.train()
    trainer.evaluate()
    result = classification_results(trainer.evaluation_results)["eval"]
    last: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "reg_loss" in entry), {})
    return {
        "worst": result.worst_group_accuracy,
        "average": result.accuracy,
        "groups": dict(result.group_accuracies),
        "seconds": round(time.perf_counter() - start, 2),
        **{name: last[name] for name in ("reg_loss", "plain_drift") if name in last},
    }


def with_own_term(trainer: StarFTTrainer, form: Form) -> Any:
    """A context in which the divergence on plain captions, which is only measured, is a term of the loss."""
    step = trainer.training_losses

    def with_term(model: Any, batch: Any, reg_weight: float) -> Any:
        losses = step(model, batch, reg_weight)
        assert losses.plain_drift is not None
        excess = (losses.plain_drift - form.tolerance).clamp_min(0)
        return dataclasses.replace(losses, loss=losses.loss + form.term * reg_weight * excess)

    # The function without `torch.no_grad`.
    measured = training_step._plain_drift
    if form.term:
        # The trainer only calls it.
        trainer.training_losses = cast(training_step.TrainingStep, with_term)
        measured = inspect.unwrap(measured)
    return patch.object(training_step, "_plain_drift", measured)


def compared(cells: Sequence[Cell], *methods: str) -> Iterator[Cell]:
    """Cells by all of the methods, with the zero-shot models they start from."""
    for cell in cells:
        yield cell.start
        for method in methods:
            yield cell.by(method)


def tasks(
    split: str, classes: Sequence[int], correlations: Sequence[float], seeds: int | None = None, **rest: Any
) -> list[Cell]:
    """Cells of every number of classes and correlation, on so many seeds of a split or on all."""
    own = (TEST_SEEDS if split == "test" else VALIDATION_SEEDS)[:seeds]
    found = product(own, classes, correlations)
    return [Cell(split, number, correlation, "default", seed, **rest) for seed, number, correlation in found]


def grid() -> Iterator[Cell]:
    """The defaults as they are: every task, and what varies from its center, one thing at a time and in corners."""
    cells = tasks("test", CLASSES, CORRELATIONS)
    few: dict[str, Any] = {"classes": (2, 6), "correlations": (0.95, 1.0)}
    for batch, steps in BATCHES:
        cells += tasks("test", **few, batch=batch, steps=steps)
    for base in (*SCALES, *BASES[1:]):
        cells += tasks("test", **few, base=base)
    for rate, steps in RATES[:2]:
        cells += tasks("test", **few, learning_rate=rate, steps=steps)
    for base in SCALES[:2]:
        corner: dict[str, Any] = {"base": base, "batch": 32, "steps": 200}
        cells += tasks("test", (2, 3), (1.0,), **corner)
    cells += long_runs()
    yield from compared(cells, "FLYP", "default")
    # What the defaults were before.
    yield from compared([cell for cell in cells if cell.classes < MANY], "plain 0")


def long_runs(classes: Sequence[int] = CLASSES) -> list[Cell]:
    """Thousands of steps at the default learning rate."""
    rate, steps = RATES[2]
    return tasks("test", classes, (0.95,), seeds=1, learning_rate=rate, steps=steps)


def forms() -> Iterator[Cell]:
    """Every form on validation."""
    yield from compared(tasks("validation", CLASSES, CORRELATIONS[2:], seeds=1), *FORMS)
    yield from compared(tasks("validation", CLASSES, CORRELATIONS[2:]), *FORMS)
    yield from compared(tasks("validation", CLASSES, CORRELATIONS[:2], seeds=1), *FORMS)


def models() -> Iterator[Cell]:
    """The defaults, and the form that holds best with few classes, on every pre-trained model, on validation."""
    for base in (*BASES, *SCALES[:2]):
        yield from compared(tasks("validation", FEW, CORRELATIONS[2:], base=base), "default", NEAREST)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for, and write what was found."""
    parts = {"grid": grid, "long": lambda: compared(long_runs(), "FLYP", *LONG), "forms": forms}
    parts["models"] = models
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=parts, nargs="*", default=list(parts))
    parser.add_argument("--work", type=Path, default=WORK, help="for models and caches")
    add_options(parser, RESULTS)
    options = parser.parse_args(arguments)
    store = Store(options.results)
    for part in () if options.report else options.only:
        run_all(parts[part](), partial(run_cell, work=options.work), store, what=part, **limits_of(options))
    from benchmarks.defaults_report import write_report

    write_report(store)


if __name__ == "__main__":
    main()
