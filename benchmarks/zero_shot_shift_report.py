"""The results of `benchmarks.zero_shot_shift` for people: tables of paired differences, and a plot."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import palette
from benchmarks.grid_runner import Store
from benchmarks.zero_shot_shift import (
    ALPHA,
    CORRELATIONS,
    METHODS,
    MODELS,
    REPLICATES,
    WORLDS,
    ZERO_SHOT,
    Cell,
    complete_replicates,
)
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.plotting import SOFT


BARS = "bars: \u00b1 two standard errors"


NOTES = Path(__file__).with_name("zero_shot_shift_notes.md")
WISE = f"FLYP, WiSE-FT {ALPHA:g}"
ROWS = ["FLYP", WISE, *(method for method in METHODS if method != "FLYP")]
Found = dict[str, dict[str, Any]]

FINE, COMMON, NEW = "fine classes", "common names", "new classes"


def retention(found: Found) -> float:
    """The mean of the averages of the retention sets."""
    return statistics.fmean(own["average"] for name, own in found.items() if name not in (FINE, COMMON, NEW))


MEASURES: dict[str, Callable[[Found], float]] = {
    "common names, worst group": lambda found: found[COMMON]["worst"],
    "common names, average": lambda found: found[COMMON]["average"],
    "new classes, worst group": lambda found: found[NEW]["worst"],
    "new classes, average": lambda found: found[NEW]["average"],
    "fine classes, average": lambda found: found[FINE]["average"],
    "retention, mean of six": retention,
}
PAIRS = (
    ("star, paper", "FLYP"),
    ("star, auto", "star, paper"),
    ("kl, auto", "star, auto"),
    ("star, auto", "star, auto, unrelated pool"),
    ("star, auto", WISE),
)


def mean_and_error(values: Sequence[float]) -> str:
    """The mean of differences in points, and its standard error."""
    if len(values) < 2:
        return f"{statistics.fmean(values):+.1f}"
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def sets_of(store: Store, world: str, method: str, correlation: float | None, replicate: int) -> Found:
    """What was measured of a row of the tables."""
    if method == WISE:
        return store[Cell(world, "FLYP", correlation, replicate)]["interpolated"]
    return store[Cell(world, method, None if method == ZERO_SHOT else correlation, replicate)]["sets"]


def values(store: Store, world: str, method: str, correlation: float, measure: str) -> list[float]:
    """A measure of every complete replicate, in %."""
    found = MEASURES[measure]
    numbers = complete_replicates(store, world, correlation)
    return [100 * found(sets_of(store, world, method, correlation, number)) for number in numbers]


def differences(store: Store, world: str, pair: tuple[str, str], correlation: float, measure: str) -> list[float]:
    """The first method less the second, of every complete replicate, in points."""
    first, second = (values(store, world, method, correlation, measure) for method in pair)
    return [left - right for left, right in zip(first, second, strict=True)]


def _head(first: str) -> list[str]:
    return [f"| {first} | {' | '.join(MEASURES)} |", f"| --- | {' | '.join('---:' for _ in MEASURES)} |"]


def table(store: Store, world: str, correlation: float) -> list[str]:
    """Every measure of every method in %, mean over replicates."""
    lines = _head(f"{correlation:g}")
    for method in (ZERO_SHOT, *ROWS):
        means = [statistics.fmean(values(store, world, method, correlation, measure)) for measure in MEASURES]
        lines.append(f"| {method} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return lines


def paired_table(store: Store, world: str, correlation: float) -> list[str]:
    """Every method against zero-shot, and pairs of methods."""
    lines = _head(f"{correlation:g}, in points")
    for first, second in (*((method, ZERO_SHOT) for method in ROWS), *PAIRS):
        cells = [mean_and_error(differences(store, world, (first, second), correlation, name)) for name in MEASURES]
        lines.append(f"| {first} less {second} | {' | '.join(cells)} |")
    return lines


def retention_table(store: Store, world: str, correlation: float) -> list[str]:
    """Every retention set against zero-shot."""
    numbers = complete_replicates(store, world, correlation)
    names = [name for name in sets_of(store, world, ZERO_SHOT, None, numbers[0]) if name not in (FINE, COMMON, NEW)]
    lines = [f"| {correlation:g}, in points | {' | '.join(names)} |", f"| --- | {' | '.join('---:' for _ in names)} |"]
    for method in ROWS:
        cells = []
        for name in names:
            pairs = [
                [sets_of(store, world, own, correlation, number)[name]["average"] for own in (method, ZERO_SHOT)]
                for number in numbers
            ]
            cells.append(mean_and_error([100 * (tuned - start) for tuned, start in pairs]))
        lines.append(f"| {method} less {ZERO_SHOT} | {' | '.join(cells)} |")
    return lines


@palette.page_style()
def draw(store: Store, path: Path) -> None:
    """Three measures against zero-shot, a row of panels per world: means, and two standard errors."""
    shown = ("common names, worst group", "new classes, worst group", "retention, mean of six")
    worlds = covered(store)
    figure = Figure(figsize=(9, 0.7 + 2.7 * len(worlds)), layout="constrained")
    axes = figure.subplots(len(worlds), len(shown), sharey=True, squeeze=False)
    for row, world in enumerate(worlds):
        for panel, measure in zip(axes[row], shown, strict=True):
            for place, correlation in enumerate(worlds[world]):
                found = [differences(store, world, (method, ZERO_SHOT), correlation, measure) for method in ROWS]
                panel.errorbar(
                    [statistics.fmean(own) for own in found],
                    [number + 0.16 * (2 * place - 1) for number in range(len(ROWS))],
                    xerr=[2 * statistics.stdev(own) / len(own) ** 0.5 if len(own) > 1 else 0 for own in found],
                    fmt="o",
                    ms=5,
                    capsize=2,
                    color=(palette.FLYP, palette.KL)[CORRELATIONS.index(correlation)],
                    label=f"{correlation:.0%} of the training images at home",
                )
            panel.axvline(0, color=SOFT, lw=1)
            panel.set_title(f"{world}: {measure}".replace(": ", ":\n"))
        axes[row, 0].set_yticks(range(len(ROWS)), ROWS)
    axes[0, 0].invert_yaxis()
    for panel in axes[-1]:
        panel.set_xlabel("points against zero-shot")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, title=BARS)
    palette.save(figure, path)


INTRODUCTION = """
By `python -m benchmarks.zero_shot_shift`. A model is fine-tuned on 60 or more fine classes, each at home on one of
two backgrounds, in 50% (nothing spurious) or 95% of its images; then it classifies with names that fine-tuning
never saw. "Common names" are two, of trained classes at home on one background and of trained classes at home on
the other; "new classes" are two without any training image. Worst groups are of class and background. Every
replicate has images of its own; differences are paired by replicate, ± the standard error of their mean. What was
expected: several_shortcuts_hypotheses.md, part A, committed before the first run.
"""


def covered(store: Store) -> dict[str, list[float]]:
    """By world, the correlations with complete replicates."""
    found = {
        world: [correlation for correlation in CORRELATIONS if complete_replicates(store, world, correlation)]
        for world in WORLDS
    }
    return {world: own for world, own in found.items() if own}


def as_markdown(store: Store) -> str:
    """The page."""
    lines = [
        "# Fine-tuned on many classes, zero-shot on others",
        *INTRODUCTION.splitlines(),
        "",
        "![Differences from zero-shot](zero_shot_shift.png)",
        "",
        "Bars are two standard errors.",
    ]
    for world, correlations in covered(store).items():
        seconds = sum(own["seconds"] for key, own in store.cells.items() if key.split(" | ")[0] == world)
        numbers = {correlation: complete_replicates(store, world, correlation) for correlation in correlations}
        counts = [
            f"{len(own)} at {correlation:g} ({len({MODELS * number // REPLICATES for number in own})} of {MODELS} "
            "pre-trained models)"
            for correlation, own in numbers.items()
        ]
        lines += [
            "",
            f"## {world.capitalize()}",
            "",
            f"Replicates, of {REPLICATES}: {', '.join(counts)}; {seconds / 60:.0f} core-minutes besides pre-training. "
            "Accuracies in %:",
        ]
        for make in (table, paired_table, retention_table):
            for correlation in correlations:
                lines += ["", *make(store, world, correlation)]
    return "\n".join([*lines, "", *NOTES.read_text(encoding="utf-8").splitlines()]) + "\n"


def write_report(store: Store, folder: Path) -> None:
    """ZERO_SHOT_SHIFT.md and its plot."""
    if not covered(store):
        print("no replicate is complete yet")
        return
    write_text_atomically(folder / "ZERO_SHOT_SHIFT.md", as_markdown(store))
    draw(store, folder / "zero_shot_shift.png")
