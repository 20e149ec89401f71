"""The results of `benchmarks.beyond` for people: one table, the weights, and two plots."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import palette
from benchmarks.beyond import (
    AUTO,
    BASES,
    CHOICE,
    CHOICE_SEEDS,
    CLASSES,
    CORRELATIONS,
    METHODS,
    PER_GROUP,
    RUNS,
    SCALE_METHODS,
    SCALE_WEIGHTS,
    SCALES,
    Cell,
    auto,
    auto_cells,
    chosen,
    complete_runs,
    schedule_cells,
    test_cells,
)
from benchmarks.grid_runner import Store
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.plotting import SOFT


TUNED = "WiSE-FT, tuned"
# Methods by the names of their rows, each followed by the same with `reg_weight="auto"` where that was run.
ROWS = [name for method in METHODS for name in (method, f"{method}, auto") if name == method or method in AUTO]
ROWS.insert(2, TUNED)
# What is compared with kl.
COMPARED = [method for method in ROWS[2:] if method != "kl"]
NOTES = Path(__file__).with_name("beyond_notes.md")
FIGURES = ("worst", "average")
BARS = "points: mean over runs; bars: \u00b1 standard deviation"
SCALE_BARS = "points: mean of two seeds; bars: from one seed to the other"
DRAWN = {
    "zero-shot": {"color": palette.ZERO_SHOT, "ls": "--"},
    "FLYP": {"color": palette.FLYP},
    TUNED: {"color": palette.WISE_FT},
    "kl": {"color": palette.KL},
    "star": {"color": palette.STAR},
    "conditional": {"color": palette.CONDITIONAL},
    "attribution": {"color": palette.ATTRIBUTION},
    "conditional + attribution": {"color": palette.BOTH},
    "both, 20% of attributes random": {"color": palette.BOTH, "ls": "--"},
    "both, pool misses the bias": {"color": palette.BOTH, "ls": ":"},
}


def tested(store: Store) -> list[dict[str, Any]]:
    """What was tested: the cell's parts and its result, one entry per fine-tuning and row of the tables."""
    entries = []
    for run in complete_runs(store):
        for cell in test_cells(store, run):
            result = store[cell]
            entries.append({**asdict(cell), **result})
            if "interpolated" in result:
                entries.append({**asdict(cell), "method": TUNED, **result["interpolated"]})
        for cell in auto_cells(run):
            entries.append({**asdict(cell), **store[cell], "method": f"{cell.method}, auto"})
    return entries


def values(entries: Sequence[dict[str, Any]], classes: int, correlation: float, method: str, what: str) -> list[float]:
    """A figure of all runs of a method on a task, in %."""
    return [
        100 * entry[what]
        for entry in entries
        if entry["classes"] == classes
        and entry["method"] == method
        # Zero-shot does not depend on the training images, and is run once.
        and (entry["correlation"] == correlation or method == "zero-shot")
    ]


def spread(found: Sequence[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    return statistics.stdev(found) if len(found) > 1 else 0.0


def table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Worst group ± its standard deviation / average, by number of classes and correlation."""
    lines = [
        f"| Classes | Correlation | {' | '.join(ROWS)} |",
        f"| ---: | ---: | {' | '.join('---:' for _ in ROWS)} |",
    ]
    for classes in CLASSES:
        for correlation in CORRELATIONS:
            cells = []
            for method in ROWS:
                worst, average = (values(entries, classes, correlation, method, what) for what in FIGURES)
                if not worst:
                    cells.append("")
                    continue
                cells.append(f"{statistics.fmean(worst):.0f} ± {spread(worst):.0f} / {statistics.fmean(average):.0f}")
            if any(cells[1:]):
                lines.append(f"| {classes} | {correlation:g} | {' | '.join(cells)} |")
    return lines


def summary(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Worst group and average of every method over the tasks, by correlation."""
    lines = [
        f"| Method | {' | '.join(f'{correlation:g}' for correlation in CORRELATIONS)} |",
        f"| --- | {' | '.join('---:' for _ in CORRELATIONS)} |",
    ]
    for method in ROWS:
        cells = []
        for correlation in CORRELATIONS:
            figures = []
            for what in FIGURES:
                by_task = [values(entries, classes, correlation, method, what) for classes in CLASSES]
                figures.append(statistics.fmean(statistics.fmean(found) for found in by_task if found))
            cells.append(f"{figures[0]:.1f} / {figures[1]:.1f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def by_run(entries: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The entries by method, classes, correlation, model and seed."""
    parts = ("method", "classes", "correlation", "base", "seed")
    return {tuple(entry[part] for part in parts): entry for entry in entries}


def gains(
    found: dict[tuple[Any, ...], dict[str, Any]],
    method: str,
    correlation: float,
    what: str,
    bases: Sequence[str] = BASES,
) -> list[float]:
    """What a method gains over kl in every run at a correlation on some of the models, in points.

    Args:
        found: the entries by run.
        method: a row of the tables.
        correlation: one of `CORRELATIONS`.
        what: one of `FIGURES`.
        bases: the models.
    """
    return [
        100 * (entry[what] - found["kl", classes, at, base, seed][what])
        for (own, classes, at, base, seed), entry in found.items()
        if (own, at) == (method, correlation) and base in bases
    ]


def paired_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Worst group and average against kl on the same task, model and seed, in points with their standard errors."""
    found = by_run(entries)
    lines = [
        f"| Against kl | {' | '.join(f'{correlation:g}' for correlation in CORRELATIONS)} |",
        f"| --- | {' | '.join('---:' for _ in CORRELATIONS)} |",
    ]
    for method in COMPARED:
        cells = []
        for correlation in CORRELATIONS:
            figures = []
            for what in FIGURES:
                own = gains(found, method, correlation, what)
                figures.append(f"{statistics.fmean(own):+.1f} ± {spread(own) / len(own) ** 0.5:.1f}")
            cells.append(" / ".join(figures))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def by_model_table(entries: Sequence[dict[str, Any]], correlation: float) -> list[str]:
    """Worst group against kl at a correlation, by pre-trained model, in points."""
    found = by_run(entries)
    bases = sorted({entry["base"] for entry in entries})
    lines = [f"| Against kl | {' | '.join(bases)} |", f"| --- | {' | '.join('---:' for _ in bases)} |"]
    for method in COMPARED:
        means = [statistics.fmean(gains(found, method, correlation, "worst", [base])) for base in bases]
        lines.append(f"| {method} | {' | '.join(f'{mean:+.1f}' for mean in means)} |")
    return lines


def schedule_table(store: Store) -> list[str]:
    """Worst group / average on validation with `reg_weight="auto"`, by schedule and number of classes."""
    lines = [
        f"| `reg_schedule` | Regularizer | {' | '.join(f'{classes} classes' for classes in CLASSES)} |",
        f"| --- | --- | {' | '.join('---:' for _ in CLASSES)} |",
    ]
    for part, name in (("choice", "constant"), ("linear", "linear")):
        for method in SCALE_METHODS:
            cells = []
            for classes in CLASSES:
                own = [
                    store[cell] for cell in schedule_cells(part) if (cell.method, cell.classes) == (method, classes)
                ]
                worst, average = (statistics.fmean(100 * result[what] for result in own) for what in FIGURES)
                cells.append(f"{worst:.1f} / {average:.1f}")
            lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return lines


def duration_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Duration of a run by number of classes, as a multiple of star's of the same task, model and seed; median."""
    # FLYP's runs include interpolating weights.
    methods = [method for method in METHODS if method not in ("zero-shot", "FLYP") and "," not in method]
    lines = [f"| Classes | {' | '.join(methods)} |", f"| ---: | {' | '.join('---:' for _ in methods)} |"]
    found = by_run(entries)
    for classes in CLASSES:
        ratios = [
            statistics.median(
                entry["seconds"] / found["star", number, at, base, seed]["seconds"]
                for (own, number, at, base, seed), entry in found.items()
                if (own, number) == (method, classes)
            )
            for method in methods
        ]
        lines.append(f"| {classes} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return lines


def scale_values(store: Store, base: str, method: str, weight: float, what: str = "worst") -> list[float]:
    """A figure of every seed on validation, in %."""
    cells = [Cell("scale", 6, CHOICE["correlation"], base, method, weight, seed) for seed in CHOICE_SEEDS]
    return [100 * store[cell][what] for cell in cells if cell in store]


def scale_name(base: str) -> str:
    """How a model is called for people."""
    kind = base.split("-")[0]
    return f"{SCALES[base]}{', put in afterwards' if kind == 'rescaled' else ', pre-trained at it'}"


def scale_table(store: Store) -> list[str]:
    """Worst group / average by model, regularizer and weight; the best worst group of a row in bold."""
    lines = [
        f"| s0 | Regularizer | {' | '.join(f'{weight:g}' for weight in SCALE_WEIGHTS)} |",
        f"| --- | --- | {' | '.join('---:' for _ in SCALE_WEIGHTS)} |",
    ]
    for base in SCALES:
        for method in SCALE_METHODS:
            found = [scale_values(store, base, method, weight) for weight in SCALE_WEIGHTS]
            if not all(found):
                continue
            best = max(statistics.fmean(own) for own in found)
            cells = []
            for weight, own in zip(SCALE_WEIGHTS, found, strict=True):
                worst = f"{statistics.fmean(own):.1f}"
                average = statistics.fmean(scale_values(store, base, method, weight, "average"))
                cells.append(f"{f'**{worst}**' if statistics.fmean(own) == best else worst} / {average:.1f}")
            lines.append(f"| {scale_name(base)} | {method} | {' | '.join(cells)} |")
    return lines


@palette.page_style()
def draw(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Worst group and average by correlation, a column of panels per number of classes."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots(2, len(CLASSES), sharex=True, sharey="row")
    for column, classes in enumerate(CLASSES):
        for row, what in enumerate(FIGURES):
            panel = axes[row, column]
            for method in DRAWN:
                found = [values(entries, classes, correlation, method, what) for correlation in CORRELATIONS]
                if not all(found):
                    continue
                means = [statistics.fmean(own) for own in found]
                shown = {"label": method, "lw": 1.6, **DRAWN[method]}
                if method == "zero-shot":
                    panel.plot(range(len(CORRELATIONS)), means, **shown)
                    continue
                panel.errorbar(
                    range(len(CORRELATIONS)),
                    means,
                    [spread(own) for own in found],
                    marker="o",
                    ms=4,
                    capsize=2,
                    **shown,
                )
            panel.set_xticks(range(len(CORRELATIONS)), [f"{correlation:g}" for correlation in CORRELATIONS])
            if row == 0:
                panel.set_title(f"{classes} classes")
        axes[1, column].set_xlabel("correlation in training")
    axes[0, 0].set_ylabel("worst group, %")
    axes[1, 0].set_ylabel("average, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title=BARS)
    palette.save(figure, path)


@palette.page_style()
def draw_scale(store: Store, path: Path) -> None:
    """Worst group on validation by weight, a panel per model, with what single seeds gave; the line is "auto"."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(SCALES), sharey=True)
    for panel, base in zip(axes, SCALES, strict=True):
        for method in SCALE_METHODS:
            found = [scale_values(store, base, method, weight) for weight in SCALE_WEIGHTS]
            if all(found):
                means = [statistics.fmean(own) for own in found]
                colour = DRAWN[method]["color"]
                panel.plot(SCALE_WEIGHTS, means, marker="o", ms=4, color=colour, label=method)
                panel.vlines(
                    SCALE_WEIGHTS, [min(own) for own in found], [max(own) for own in found], colour, alpha=0.5
                )
        panel.axvline(auto(6, "kl"), color=SOFT, ls=":", label='the weight of "auto"')
        panel.set_xscale("log")
        panel.set_xticks(SCALE_WEIGHTS, [f"{weight:g}" for weight in SCALE_WEIGHTS])
        panel.minorticks_off()
        panel.set_title(f"s0 = {scale_name(base)}".replace(", ", ",\n"))
        panel.set_xlabel("reg_weight")
    axes[0].set_ylabel("worst group, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title=SCALE_BARS)
    palette.save(figure, path)


def write_report(store: Store, folder: Path) -> None:
    """beyond.md and its plots."""
    entries = tested(store)
    runs = {(entry["base"], entry["seed"]) for entry in entries}
    methods = [method for method in METHODS if method != "zero-shot" and "," not in method and method != "attribution"]
    lines = [
        "# Beyond the paper",
        "",
        "By `python -m benchmarks.beyond`, on the demo's world: 480 training images, two backgrounds, 100 steps. "
        "Figures",
        f"are of {len(runs)} runs each (of zero-shot one per model), over "
        f"{len({base for base, _ in runs})} pre-trained models and "
        f"{len({seed for _, seed in runs})} seeds ({len(runs)} of {len(RUNS)} pairs),",
        f"scored on {PER_GROUP} images of every group. The weight of a regularizer is constant over a run "
        "(`reg_schedule`),",
        'and was chosen on validation, or is what `reg_weight="auto"` takes; where both are the same, so is the run.',
        "",
        "![Worst group and average by correlation](beyond.png)",
        "",
        "Worst group / average in %, mean over the numbers of classes, by correlation (0.5 is none):",
        "",
        *summary(entries),
        "",
        "The same against kl on the same task, model and seed: worst group / average in points, each ± its standard "
        "error",
        "over all runs, as though they were independent; runs of one model are more alike.",
        "",
        *paired_table(entries),
        "",
        "Worst group against kl where no image is an exception (correlation 1), by pre-trained model, in points:",
        "",
        *by_model_table(entries, 1.0),
        "",
        "Every task, worst group ± standard deviation over runs / average:",
        "",
        *table(entries),
        "",
        "Weights (of FLYP the alpha of WiSE-FT) with the best worst group on validation, at a correlation of "
        f"{CHOICE['correlation']}, on the",
        f"model that comes with the package, with {len(CHOICE_SEEDS)} seeds that are not tested; kept for all "
        "correlations and models:",
        "",
        f"| Classes | {' | '.join(methods)} |",
        f"| ---: | {' | '.join('---:' for _ in methods)} |",
        *(
            f"| {classes} | {' | '.join(f'{chosen(store, classes, method):g}' for method in methods)} |"
            for classes in CLASSES
        ),
        "",
        "## How long they take",
        "",
        "Duration of a run (training, its preparation, the evaluation), on one core, as a multiple of star's on",
        "the same task, model and seed; median.",
        '"attribution" trains without a regularizer, so that it costs about what plain fine-tuning does.',
        "",
        *duration_table(entries),
        "",
        "## Weights and the logit scale",
        "",
        f"Worst group / average in % on validation, six classes, correlation {CHOICE['correlation']}, "
        f"{len(CHOICE_SEEDS)} seeds, by weight. The",
        'dotted line is what `reg_weight="auto"` takes; bars reach from one seed to the other.',
        "",
        "![Worst group by weight](beyond_scale.png)",
        "",
        *scale_table(store),
        "",
        f'`reg_weight="auto"` on validation, correlation {CHOICE["correlation"]}, the package\'s model, '
        f"{len(CHOICE_SEEDS)} seeds, under the default",
        'schedule and under "linear", which falls to 0:',
        "",
        *schedule_table(store),
        "",
        *NOTES.read_text(encoding="utf-8").splitlines(),
    ]
    write_text_atomically(folder / "beyond.md", "\n".join(lines) + "\n")
    draw(entries, folder / "beyond.png")
    draw_scale(store, folder / "beyond_scale.png")
