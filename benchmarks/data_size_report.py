"""The results of `benchmarks.data_size` for people: DATA_SIZE.md, and the guide that has a part of it."""

import statistics
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from benchmarks.data_size import BATCH, FOLDER, METHODS, RATES, REPLICATES, SCORED, WORLDS, Cell, is_run, settings_of
from benchmarks.evidence import filled
from benchmarks.grid_runner import Store
from benchmarks.photographs.report import markdown_table
from starft_hf.demo.pretrain import LEARNING_RATE
from starft_hf.utils.files import write_text_atomically


PAGE = FOLDER / "DATA_SIZE.md"
NOTES = FOLDER / "data_size_notes.md"
GUIDE = FOLDER.parent / "docs" / "data_size.md"
# What settings are chosen by.
CRITERIA = {"worst": "worst group", "average": "average"}
# Of equally many images in what is scored.
GROUPS = 4
# In points: what a run may lose of the zero-shot worst group and still keep it.
ALLOWED = 2
Setting = tuple[float, int]


def rate_name(rate: float) -> str:
    """A multiple of the rate of pre-training."""
    return f"{Fraction(rate)} x"


def number(size: int) -> str:
    """A number of images."""
    return f"{size:,}"


class Measured:
    """The runs of a method with training sets of a size.

    Attributes:
        settings: pairs of a rate and a number of steps that were run, with all methods, in the first replicate.
        replicates: in which all of these were run.
    """

    def __init__(self, store: Store, world: str, size: int, method: str):
        self.store, self.world, self.size, self.method = store, world, size, method
        self.settings = [one for one in settings_of(world) if is_run(store, world, size, one, 0)]
        self.replicates = [
            replicate
            for replicate in range(REPLICATES)
            if all(is_run(store, world, size, one, replicate) for one in self.settings)
        ]

    def cell(self, setting: Setting, replicate: int) -> Cell:
        """A run."""
        return Cell(self.world, self.size, self.method, *setting, replicate)

    def values(self, setting: Setting, split: str, what: str) -> list[float]:
        """A figure of every replicate, in %."""
        return [100 * self.store[self.cell(setting, number)][split][what] for number in self.replicates]

    def mean(self, setting: Setting, split: str, what: str) -> float:
        """Its mean."""
        return statistics.fmean(self.values(setting, split, what))

    def zero_shot(self, split: str, what: str) -> float:
        """The same of the models that were fine-tuned."""
        starts = [self.cell((0.0, 1), number).start for number in self.replicates]
        return 100 * statistics.fmean(self.store[cell][split][what] for cell in starts)

    def best(self, what: str) -> Setting:
        """The setting with the best mean on validation; of equal ones the first, with the smallest rate."""
        return max(self.settings, key=lambda setting: self.mean(setting, "validation", what))

    def standard_error(self, what: str) -> float:
        """Of the best figure on validation, in points, by the number of images that it is a share of."""
        share = self.mean(self.best(what), "validation", what) / 100
        images = len(self.replicates) * SCORED["validation"] / (GROUPS if what == "worst" else 1)
        return 100 * (share * (1 - share) / images) ** 0.5

    def level(self, what: str) -> list[Setting]:
        """The settings that validation does not tell from the best one: within one standard error."""
        least = self.mean(self.best(what), "validation", what) - self.standard_error(what)
        return [setting for setting in self.settings if self.mean(setting, "validation", what) >= least]

    def largest_safe_rate(self, steps: int) -> float | None:
        """The largest rate up to which all keep zero-shot's worst group on validation; None if the smallest loses."""
        least, found = self.zero_shot("validation", "worst") - ALLOWED, None
        for rate in (rate for rate in RATES if (rate, steps) in self.settings):
            if self.mean((rate, steps), "validation", "worst") < least:
                break
            found = rate
        return found

    def epochs(self, steps: int) -> str:
        """Of that many steps."""
        return f"{self.cell((1.0, steps), 0).epochs:.2g}"


def measured(store: Store) -> Iterator[tuple[Measured, Measured]]:
    """What is complete, by world and size: each method."""
    for world, own in WORLDS.items():
        for size in own.sizes:
            flyp, defaults = (Measured(store, world, size, method) for method in METHODS)
            if flyp.settings:
                yield flyp, defaults


def both(found: Measured, setting: Setting) -> str:
    """Worst group / average on the test images."""
    return " / ".join(f"{found.mean(setting, 'test', what):.1f}" for what in CRITERIA)


def setting_name(setting: Setting) -> str:
    """A rate and a number of steps."""
    return f"{rate_name(setting[0])}, {setting[1]}"


def choice_table(store: Store, what: str) -> list[str]:
    """The best setting on validation and its test, for every world, size and method, and what is level with it."""
    rows = []
    for pair in measured(store):
        for found in pair:
            best = found.best(what)
            rows.append(
                [
                    f"{found.world}, {number(found.size)}, {found.method}",
                    " / ".join(f"{found.zero_shot('test', one):.1f}" for one in CRITERIA),
                    f"**{setting_name(best)}** ({found.epochs(best[1])})",
                    both(found, best),
                    f"{found.standard_error(what):.1f}",
                    "; ".join(setting_name(setting) for setting in found.level(what) if setting != best),
                ]
            )
    header = ["Images", "Zero-shot", "Rate, steps (epochs)", "Fine-tuned", "s.e.", "Level with it"]
    return markdown_table(header, rows)


def safe_table(store: Store) -> list[str]:
    """The largest rate at which the defaults keep zero-shot's worst group, by size and steps."""
    all_steps = sorted({steps for world in WORLDS.values() for steps in world.steps})
    rows = []
    for _, found in measured(store):
        cells = []
        for steps in all_steps:
            if not any(own == steps for _, own in found.settings):
                cells.append("not run")
                continue
            rate = found.largest_safe_rate(steps)
            if rate is None:
                cells.append("none")
                continue
            change = found.mean((rate, steps), "test", "worst") - found.zero_shot("test", "worst")
            cells.append(f"{rate_name(rate)} ({change:+.1f})")
        rows.append([f"{found.world}, {number(found.size)}", *cells])
    return markdown_table(["Images", *(f"{steps} steps" for steps in all_steps)], rows)


def grid_table(found: Measured) -> list[str]:
    """Every setting of a method that was run."""
    rates = [rate for rate in RATES if any(own == rate for own, _ in found.settings)]
    rows = [
        [
            f"{steps} ({found.epochs(steps)})",
            *(both(found, (rate, steps)) if (rate, steps) in found.settings else "" for rate in rates),
        ]
        for steps in WORLDS[found.world].steps
        if any(own == steps for _, own in found.settings)
    ]
    return markdown_table(["Steps (epochs)", *(rate_name(rate) for rate in rates)], rows)


INTRODUCTION = f"""
By `python -m benchmarks.data_size`: six classes, the background correlated with the class at 0.95, batches of {BATCH},
no random crops, and otherwise `StarFTConfig` as it is (warm-up over a tenth of the run, then a cosine, clipping at 1),
without a regularizer (FLYP) and with the default one. Training sets are rounded down to full classes. Rates are
multiples of the peak rate of pre-training, {LEARNING_RATE:g} in both worlds. Every run is scored on
{SCORED["validation"]} validation images, by which settings are chosen, and on {SCORED["test"]} test images, with as
many of every group; figures are % of the test images, worst group / average, unless something else is said.
"""
CHOSEN = """
The best setting on validation, and its figures on test. "Level with it" are the settings that validation does not tell
from it: within one standard error (s.e., in points) of its figure on validation, by the number of images.
"""
SAFE = f"""
The largest rate, of those that were run, up to which the defaults lose at most {ALLOWED} points of zero-shot's worst
group on validation; in parentheses, what that rate changes on test images, in points:
"""


def page(store: Store) -> str:
    """The page."""
    counts = [f"- {own.world}, {number(own.size)} images: {len(own.replicates)}" for own, _ in measured(store)]
    lines = [
        "# Learning rate and steps by size of data",
        *INTRODUCTION.splitlines(),
        "",
        f"Replicates, each with images of its own, of {REPLICATES}; what is empty below was not run:",
        "",
        *counts,
    ]
    for what, name in CRITERIA.items():
        lines += ["", f"## By {name}", *CHOSEN.splitlines(), "", *choice_table(store, what)]
    lines += ["", "## What keeps zero-shot", *SAFE.splitlines(), "", *safe_table(store)]
    for pair in measured(store):
        for found in pair:
            title = f"## {found.world}, {number(found.size)} images, {found.method}"
            zero_shot = " / ".join(f"{found.zero_shot('test', what):.1f}" for what in CRITERIA)
            lines += ["", title, "", f"Zero-shot: {zero_shot}.", "", *grid_table(found)]
    return "\n".join(lines) + "\n"


def write_report(store: Store, page_path: Path = PAGE, guide: Path = GUIDE) -> None:
    """Write the page, and the guide that has a part of it."""
    write_text_atomically(page_path, page(store))
    if NOTES.exists():
        write_text_atomically(guide, filled(NOTES))
