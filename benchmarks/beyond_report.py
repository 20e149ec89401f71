"""The results of `benchmarks.beyond` for people: one table, the weights, and two plots."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.beyond import (
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
    Store,
    chosen,
    complete_runs,
    test_cells,
)
from starft_hf.files import file_in_place_of, write_text_atomically
from starft_hf.regularizers import get_regularizer


_KL = get_regularizer("kl")
AUTO = _KL.weight("auto", 6) if _KL is not None else None
TUNED = "WiSE-FT, tuned"
ROWS = [*list(METHODS)[:2], TUNED, *list(METHODS)[2:]]
DRAWN = ("zero-shot", "FLYP", TUNED, "kl", "star", "conditional", "attribution", "conditional + attribution")
COLOURS = dict(zip(DRAWN, ("0.5", "C7", "C5", "C0", "C1", "C2", "C4", "C3"), strict=True))


NOTES = """\
## What was tried and did not help

- "conditional" in place of "kl": with the weight of each chosen on validation they are within a point of each other at
  every correlation. It is faster, because it needs a caption per class rather than one per image.
- A large weight of "star" with two classes: at 3000 it is the best of its weights on validation, and unstable.
- Weights of the images alone, without a regularizer: what is left of the shortcut in the rare images is learned.
- The small weight that is best beside attribution weights at a correlation of 0.95, at one of 1: there, no image shows
  anything else, weights have nothing to work with, and 14 points of the worst group are lost to what "kl" keeps with
  its larger weight.
- A weight that falls as the logit scale grows, as 1 / s0 or slower: what it takes at 50 and 100 does worse there.
- Attribution by one softmax over classes x templates, with the classes summed out. Templates that the model cannot
  tell from the plain caption take their share of the probability: with 15 of them beside the 15 of the backgrounds,
  images that are not at home weigh 4.4 on average in place of 9.1 (by true groups 10). `discover_spuriosity` leaves
  such templates out, takes away what tells classes apart and counts the plain caption as "none of them": its
  attribution is the one that is used.

## What a toy world cannot show

There is one shortcut here, of two values, which the pre-trained model knows well and has words for, so that
attribution is nearly perfect, and validation data have group labels to choose weights by. Real data have several
shortcuts at once, known to the model in part; captions of a class under a template may make no sense ("a photo of a
whale in the desert"), and what the reference answers to them may not be worth keeping. The model has 0.6 million
parameters and sees 480 pictures 13 times, at a learning rate that lets it forget; a large model at 1e-5 may need other
weights. Spreads are over seeds and models of one world, and say nothing about other worlds."""


def tested(store: Store) -> list[dict[str, Any]]:
    """What was tested: the cell's parts and its result, one entry per fine-tuning and row of the tables."""
    entries = []
    for run in complete_runs(store):
        for cell in test_cells(store, run):
            result = store[cell]
            entries.append({**asdict(cell), **result})
            if "interpolated" in result:
                entries.append({**asdict(cell), "method": TUNED, **result["interpolated"]})
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
                worst, average = (values(entries, classes, correlation, method, what) for what in ("worst", "average"))
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
            for what in ("worst", "average"):
                by_task = [values(entries, classes, correlation, method, what) for classes in CLASSES]
                figures.append(statistics.fmean(statistics.fmean(found) for found in by_task if found))
            cells.append(f"{figures[0]:.1f} / {figures[1]:.1f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def by_run(entries: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The entries by method, classes, correlation, model and seed."""
    parts = ("method", "classes", "correlation", "base", "seed")
    return {tuple(entry[part] for part in parts): entry for entry in entries}


def paired_table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Worst group and average against kl on the same task, model and seed, in points with their standard errors."""
    found = by_run(entries)
    lines = [
        f"| Against kl | {' | '.join(f'{correlation:g}' for correlation in CORRELATIONS)} |",
        f"| --- | {' | '.join('---:' for _ in CORRELATIONS)} |",
    ]
    for method in ROWS[2:]:
        if method == "kl":
            continue
        cells = []
        for correlation in CORRELATIONS:
            figures = []
            for what in ("worst", "average"):
                gains = [
                    100 * (entry[what] - found[("kl", *key[1:])][what])
                    for key, entry in found.items()
                    if (key[0], key[2]) == (method, correlation)
                ]
                figures.append(f"{statistics.fmean(gains):+.1f} ± {spread(gains) / len(gains) ** 0.5:.1f}")
            cells.append(" / ".join(figures))
        lines.append(f"| {method} | {' | '.join(cells)} |")
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
                entry["seconds"] / found[("star", *key[1:])]["seconds"]
                for key, entry in found.items()
                if key[:2] == (method, classes)
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


def draw(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Worst group and average by correlation, a column of panels per number of classes."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    axes = figure.subplots(2, len(CLASSES), sharex=True, sharey="row")
    for column, classes in enumerate(CLASSES):
        for row, what in enumerate(("worst", "average")):
            panel = axes[row, column]
            for method in DRAWN:
                found = [values(entries, classes, correlation, method, what) for correlation in CORRELATIONS]
                if not all(found):
                    continue
                means = [statistics.fmean(own) for own in found]
                shown = {"color": COLOURS[method], "label": method, "lw": 1.6}
                if method == "zero-shot":
                    panel.plot(range(len(CORRELATIONS)), means, ls="--", **shown)
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
            panel.grid(alpha=0.3)
            if row == 0:
                panel.set_title(f"{classes} classes")
        axes[1, column].set_xlabel("correlation in training")
    axes[0, 0].set_ylabel("worst group, %")
    axes[1, 0].set_ylabel("average, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(DRAWN))
    with file_in_place_of(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def draw_scale(store: Store, path: Path) -> None:
    """Worst group on validation by weight, a panel per model; the line is what "auto" takes."""
    figure = Figure(figsize=(15, 3.6), layout="constrained")
    axes = figure.subplots(1, len(SCALES), sharey=True)
    for panel, base in zip(axes, SCALES, strict=True):
        for method in SCALE_METHODS:
            found = [scale_values(store, base, method, weight) for weight in SCALE_WEIGHTS]
            if all(found):
                means = [statistics.fmean(own) for own in found]
                panel.plot(SCALE_WEIGHTS, means, marker="o", ms=4, color=COLOURS[method], label=method)
        panel.axvline(AUTO, color="0.6", ls=":")
        panel.set_xscale("log")
        panel.set_title(f"s0 = {scale_name(base)}", fontsize=10)
        panel.set_xlabel("reg_weight")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("worst group, %")
    axes[0].legend()
    with file_in_place_of(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


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
        f"are of {len(runs)} runs each, over {len({base for base, _ in runs})} pre-trained models and "
        f"{len({seed for _, seed in runs})} seeds ({len(runs)} of {len(RUNS)} pairs),",
        f"scored on {PER_GROUP} images of every group.",
        "",
        "![Worst group and average by correlation](beyond.png)",
        "",
        "Worst group / average in %, mean over the numbers of classes, by correlation (0.5 is none):",
        "",
        *summary(entries),
        "",
        "The same against kl on the same task, model and seed: worst group / average in points, each ± its standard "
        "error.",
        "",
        *paired_table(entries),
        "",
        "Every task, worst group ± standard deviation over runs / average:",
        "",
        *table(entries),
        "",
        "Weights (of FLYP the share of WiSE-FT) with the best worst group on validation, at a correlation of "
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
        'dotted line is what `reg_weight="auto"` takes.',
        "",
        "![Worst group by weight](beyond_scale.png)",
        "",
        *scale_table(store),
        "",
        NOTES,
    ]
    write_text_atomically(folder / "beyond.md", "\n".join(lines) + "\n")
    draw(entries, folder / "beyond.png")
    draw_scale(store, folder / "beyond_scale.png")
