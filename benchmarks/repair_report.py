"""The results of `benchmarks.repair` for people: REPAIR.md."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.beyond import CORRELATIONS, RUNS
from benchmarks.grid_runner import Store
from benchmarks.photographs.report import markdown_table
from benchmarks.photographs.results import estimate
from benchmarks.repair import METHODS, SIZES, TEST_SIZE, cells
from starft_hf.utils.files import write_text_atomically
from starft_hf.weights.repair.candidates import METHODS as REPAIRS


CHOICES = {**{f"balanced {size}": f"{size} balanced" for size in SIZES}, "as trained": f"{max(SIZES)} as trained"}
FIGURES = ("worst", "average")
# Numbers of classes that are averaged.
FEW, MANY = (2, 4), (6, 8)


def entries(store: Store) -> list[dict[str, Any]]:
    """The results of all finished cells, with their tasks."""
    return [
        {"classes": cell.classes, "correlation": cell.correlation, "run": (cell.base, cell.seed), **store[cell]}
        for cell in cells()
        if cell in store
    ]


def mean(found: list[dict[str, Any]]) -> str:
    """Worst group / average in %, means over cells."""
    if not found:
        return ""
    return " / ".join(f"{100 * statistics.fmean(one[what] for one in found):.1f}" for what in FIGURES)


def rows_of(found: list[dict[str, Any]], trained: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What is compared of a fine-tuning: itself, what was chosen on each validation set, every method on 96 images."""
    own = [entry[trained] for entry in found]
    yield f"{trained}, no repair", [entry["none"] for entry in own]
    for key, name in CHOICES.items():
        yield f"{trained}, repair chosen on {name}", [entry[key]["chosen"] for entry in own if key in entry]
    for method in REPAIRS[1:]:
        each = [entry["balanced 96"]["methods"] for entry in own]
        yield f"{trained} + {method}, 96 balanced", [one[method] for one in each if method in one]


def summary(found: list[dict[str, Any]]) -> list[str]:
    """By correlation, means over the runs, of entries with one number of classes."""
    by_correlation = {
        correlation: own
        for correlation in CORRELATIONS
        if (own := [one for one in found if one["correlation"] == correlation])
    }
    runs = [f"{correlation:g} ({len(own)})" for correlation, own in by_correlation.items()]
    lines = [f"| Worst group / average, % | {' | '.join(runs)} |", f"| --- | {' | '.join('---:' for _ in runs)} |"]
    zero_shot = [mean([one["FLYP"]["zero-shot"] for one in own]) for own in by_correlation.values()]
    lines.append(f"| zero-shot | {' | '.join(zero_shot)} |")
    for trained in METHODS:
        columns = [dict(rows_of(own, trained)) for own in by_correlation.values()]
        for name in columns[0]:
            lines.append(f"| {name} | {' | '.join(mean(column[name]) for column in columns)} |")
    return lines


def glance(found: list[dict[str, Any]], classes: tuple[int, ...]) -> list[str]:
    """Worst groups against zero-shot, by correlation: means over the runs that have all these numbers of classes."""
    by_task = {(one["correlation"], one["run"], one["classes"]): one for one in found}
    runs = {
        correlation: [run for run in RUNS if all((correlation, run, number) in by_task for number in classes)]
        for correlation in CORRELATIONS
    }
    rows = []
    for trained in METHODS:
        for name in dict(rows_of([found[0]], trained)):
            if name.endswith(", 96 balanced"):
                # One of the methods, which is not chosen.
                continue
            cells = []
            for correlation, complete in runs.items():
                pairs = {}
                for run in complete:
                    own = [by_task[correlation, run, number] for number in classes]
                    reached, start = dict(rows_of(own, trained))[name], [one[trained]["zero-shot"] for one in own]
                    pairs[run] = 100 * (
                        statistics.fmean(one["worst"] for one in reached)
                        - statistics.fmean(one["worst"] for one in start)
                    )
                # There is an estimate of any pairs.
                cells.append(estimate(pairs).signed if pairs else "")  # type: ignore[union-attr]
            rows.append([name, *cells])
    header = [f"{correlation:g} ({len(complete)})" for correlation, complete in runs.items()]
    return markdown_table(["Worst group less zero-shot's, points", *header], rows)


def gains(found: list[dict[str, Any]]) -> list[str]:
    """What each choice gains over no repair, in points, and what it promised."""
    lines = [
        "| | taken | gain of worst group ± standard error | smallest | within its promise |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for trained in METHODS:
        for key, name in CHOICES.items():
            own = [entry[trained] for entry in found if key in entry[trained]]
            if not own:
                continue
            changes = [100 * (one[key]["chosen"]["worst"] - one["none"]["worst"]) for one in own]
            errors = [100 * one[key]["standard_error"] for one in own]
            taken = sum(one[key]["chosen"]["method"] != "none" for one in own)
            spread = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
            kept = sum(change >= -error for change, error in zip(changes, errors, strict=True))
            lines.append(
                f"| {trained}, {name} | {taken} of {len(own)} | {statistics.fmean(changes):+.1f} ± {spread:.1f} | "
                f"{min(changes):+.1f} | {kept} of {len(own)} |"
            )
    return lines


def chosen_methods(found: list[dict[str, Any]]) -> list[str]:
    """How often each method was chosen."""
    lines = [f"| | {' | '.join(REPAIRS)} |", f"| --- | {' | '.join('---:' for _ in REPAIRS)} |"]
    for trained in METHODS:
        for key, name in CHOICES.items():
            own = [one[trained][key]["chosen"]["method"] for one in found if key in one[trained]]
            lines.append(f"| {trained}, {name} | {' | '.join(str(own.count(method)) for method in REPAIRS)} |")
    return lines


def page(store: Store) -> str:
    """The whole page."""
    found = entries(store)
    numbers = sorted({entry["classes"] for entry in found})
    models = sorted({entry["run"][0] for entry in found})
    lines = [
        "# Repair",
        "",
        "By `python -m benchmarks.repair`, on the demo's world: 480 training images, two backgrounds, 100 steps, and",
        "correlations of 0.5 (nothing spurious) to 1. "
        f"Finished are {len(found)} cells of {len(list(cells()))}; pre-trained models: {', '.join(models)}.",
        "Repairs are chosen on balanced validation images by the worst group, or on 396 images that are drawn as the",
        "training set is, without groups, by the worst class among all methods (which `repair` does not do unasked).",
        f"Figures are of {TEST_SIZE} balanced test images.",
        "",
        "## Train robustly, repair, or both",
        "",
        "By correlation in training (in parentheses the runs, each with a training set of its own), ± standard errors",
        "over runs:",
        *(
            line
            for classes in (FEW, MANY)
            for line in (
                "",
                f"### Means of {' and '.join(map(str, classes))} classes",
                "",
                *glance(found, classes),
            )
        ),
        "",
        "## Figures",
        "",
        "By correlation in training, means over runs, whose number is in parentheses: each has a training set of its",
        "own. Columns with other numbers are not of the same runs.",
        *(
            line
            for classes in numbers
            for line in (
                "",
                f"### {classes} classes",
                "",
                *summary([entry for entry in found if entry["classes"] == classes]),
            )
        ),
        "",
        "## What the choice promises",
        "",
        'Changes in points against no repair, over all cells; "within its promise" are choices whose worst group on',
        "the test set is at least that of no repair less the standard error that was reported:",
        "",
        *gains(found),
        "",
        "## What is chosen",
        "",
        *chosen_methods(found),
    ]
    return "\n".join(lines) + "\n"


def write_report(store: Store, path: Path) -> None:
    """Write the page."""
    write_text_atomically(path, page(store))
