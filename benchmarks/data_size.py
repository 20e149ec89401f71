"""What learning rate and how many steps for how many images: `python -m benchmarks.data_size`.

Fine-tunes without a regularizer (FLYP) and with `StarFTConfig` as it is, on 200 to 20,000 images of the demo's world
and of the photographs, at several learning rates and numbers of steps. All of them are scored on validation images, by
which settings are chosen, and on test images. What is finished stands in data_size.json and is not run again, so that
the run can be broken off at any time. At the end DATA_SIZE.md and docs/data_size.md are written.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback

from benchmarks.beyond import BASES, WORK, base_folder
from benchmarks.grid_runner import GridCell, Store, add_options, limits_of, run_all
from benchmarks.photographs import methods as photographs_methods
from benchmarks.photographs import models as photographs_models
from benchmarks.photographs import world as photographs_world
from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.demo import world as drawn_world
from starft_hf.demo.pretrain import LEARNING_RATE
from starft_hf.evaluation.results import classification_results


FOLDER = Path(__file__).parent
RESULTS = FOLDER / "data_size.json"

CORRELATION = 0.95
CLASSES = 6
# As multiples of the peak rate of pre-training, which is the same in both worlds.
RATES = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0)
STEPS = (50, 200, 800)
BATCH = 32
REPLICATES = 2
METHODS: dict[str, dict[str, Any]] = {"FLYP": {"regularizer": "none"}, "defaults": {}}
ZERO_SHOT = "zero-shot"
# Rows of what is scored, in both worlds.
SCORED = {"validation": 360, "test": 720}
# Of the images that are scored in the drawn world, where a seed draws all of them.
SCORING_SEED = 3000


@dataclass(frozen=True)
class World:
    """Where models are fine-tuned.

    Attributes:
        sizes: numbers of training images.
        steps: of the optimizer.
        base: the folder of a pre-trained model, by replicate and working folder.
        split: the images of a split, by its name, rows and replicate.
        pool: spurious templates, in words that the model knows.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    base: Callable[[int, Path], Path]
    split: Callable[[str, int, int], Dataset]
    pool: tuple[str, ...]


def _drawn(split: Any, size: int, replicate: int) -> Dataset:
    seed = replicate if split == "train" else SCORING_SEED + replicate
    return drawn_world.make_split(split, seed=seed, size=size, correlation=CORRELATION)


def _photographs(split: str, size: int, replicate: int) -> Dataset:
    content: dict[str, Any] = {"draw": replicate, "size": size, "correlation": CORRELATION, "classes": CLASSES}
    return photographs_world.make_split(split, **content, pixels=photographs_models.PIXELS["A0"])


WORLDS = {
    "drawn": World(
        (200, 2_000, 20_000),
        STEPS,
        lambda replicate, work: base_folder(BASES[replicate], work),
        _drawn,
        drawn_world.BACKGROUND_TEMPLATES,
    ),
    # There are too few cut-outs and photographs for 20,000 images that differ.
    "photographs": World(
        (200, 2_000),
        STEPS[:2],
        lambda replicate, work: photographs_models.folder_of("A0"),
        _photographs,
        photographs_methods.RIGHT_TEMPLATES,
    ),
}


@dataclass(frozen=True)
class Cell(GridCell):
    """One fine-tuning, scored on validation and test; the zero-shot model has no size, rate and steps.

    Attributes:
        world: a key of `WORLDS`.
        size: training images.
        method: "zero-shot" or a key of `METHODS`.
        rate: peak learning rate, as a multiple of that of pre-training.
        steps: of the optimizer.
        replicate: of the training images and the order; in the drawn world also of the pre-trained model.
    """

    world: str
    size: int
    method: str
    rate: float
    steps: int
    replicate: int

    @property
    def start(self) -> "Cell":
        """The zero-shot model."""
        return Cell(self.world, 0, ZERO_SHOT, 0.0, 0, self.replicate)

    @property
    def epochs(self) -> float:
        """How often every training image is seen."""
        return self.steps * BATCH / self.size


def settings_of(world: str) -> list[tuple[float, int]]:
    """Pairs of a rate and a number of steps."""
    return list(itertools.product(RATES, WORLDS[world].steps))


def block(world: str, size: int, replicate: int) -> list[Cell]:
    """The cells of a training set."""
    found = [Cell(world, size, method, *pair, replicate) for pair in settings_of(world) for method in METHODS]
    return [found[0].start, *found]


def cells(replicates: int) -> Iterator[Cell]:
    """All cells, such that few from the beginning have all sizes of both worlds."""
    for replicate in range(replicates):
        for world, own in WORLDS.items():
            for size in own.sizes:
                yield from block(world, size, replicate)


def is_run(store: Store, world: str, size: int, setting: tuple[float, int], replicate: int) -> bool:
    """Whether a setting has the figures of all methods."""
    own = [Cell(world, size, method, *setting, replicate) for method in METHODS]
    return all(cell in store for cell in (own[0].start, *own))


@lru_cache(maxsize=4)
def split_of(world: str, split: str, size: int, replicate: int) -> Dataset:
    """A split of a world."""
    return WORLDS[world].split(split, size, replicate)


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """Worst group and average on validation and test."""
    world, start = WORLDS[cell.world], time.perf_counter()
    base = str(world.base(cell.replicate, work))
    evaluation = {name: split_of(cell.world, name, size, cell.replicate) for name, size in SCORED.items()}
    with tempfile.TemporaryDirectory() as folder:
        args = StarFTConfig(
            output_dir=folder,
            reference_cache_dir=str(work / "features"),
            image_cache=str(work / "features"),
            learning_rate=cell.rate * LEARNING_RATE,
            max_steps=cell.steps or 1,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=240,
            group_column="group",
            crop_scale=None,
            seed=cell.replicate,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **METHODS.get(cell.method, METHODS["FLYP"]),
        )
        if cell.method == ZERO_SHOT:
            trainer = StarFTTrainer(base, args, eval_dataset=evaluation)
        else:
            train = split_of(cell.world, "train", cell.size, cell.replicate)
            pool: Any = "background" if cell.method == "FLYP" else list(world.pool)
            trainer = StarFTTrainer(base, args, train, evaluation, spuriosity=pool)
        # Without progress bars Trainer prints every metric.
        trainer.remove_callback(PrinterCallback)
        if cell.method != ZERO_SHOT:
            trainer.train()
        trainer.evaluate()
        results = classification_results(trainer.evaluation_results)
    return {
        **{
            name: {"worst": round(own.worst_group_accuracy, 4), "average": round(own.accuracy, 4)}
            for name, own in results.items()
        },
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_size", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--replicates", type=int, default=REPLICATES, help="default: %(default)s")
    parser.add_argument("--work", type=Path, default=WORK, help="for models")
    add_options(parser, RESULTS)
    options = parser.parse_args(arguments)
    store = Store(options.results)
    if not options.report:
        run_all(
            cells(options.replicates), partial(run_cell, work=options.work), store, what="runs", **limits_of(options)
        )
    from benchmarks.data_size_report import write_report

    write_report(store)


if __name__ == "__main__":
    main()
