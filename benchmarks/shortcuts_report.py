"""The results of `benchmarks.shortcuts` for people: what is found, what repairing one does to others, and a plot."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import palette
from benchmarks.beyond import BASES
from benchmarks.grid_runner import Store
from benchmarks.shortcuts import (
    DRAWS,
    METHODS,
    MOST_PLANTED,
    NAMED,
    PLANTED_FOR_REPAIR,
    REPLICATES,
    SHORTCUTS,
    STRENGTHS,
    UNNAMED,
    Cell,
    searches,
)
from benchmarks.zero_shot_shift_report import mean_and_error
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.plotting import SERIES


NOTES = Path(__file__).with_name("shortcuts_notes.md")
Searched = list[dict[str, Any]]
ZERO_SHOT = "zero-shot"
BY = (*PLANTED_FOR_REPAIR, "average")
PAIRS = (
    *((method, ZERO_SHOT) for method in METHODS if method != ZERO_SHOT),
    *((method, "FLYP") for method in METHODS if method not in (ZERO_SHOT, "FLYP")),
    ("kl, auto", "kl, auto, unrelated pool"),
)


def searched(store: Store, cells: Iterable[Any], most_planted: int) -> Searched:
    """The searches in the store, those of draws that are complete: of nothing, and of up to so many shortcuts."""
    rows: dict[int, Searched] = {}
    for search in cells:
        if search in store:
            own = {"number": search.planted, "strength": search.strength, **store[search]}
            rows.setdefault(search.draw, []).append(own)
    complete = 1 + most_planted * len(STRENGTHS)
    return [row for own in rows.values() if len(own) == complete for row in own]


def rate(rows: Searched, happened: Callable[[dict[str, Any]], bool]) -> str:
    """How often something happened, in %, with its standard error and the number of cases."""
    if not rows:
        return ""
    count, total = sum(happened(row) for row in rows), len(rows)
    # That of Agresti and Coull, which is not 0 where all cases agree.
    share = (count + 2) / (total + 4)
    return f"{100 * count / total:.1f} ± {100 * (share * (1 - share) / (total + 4)) ** 0.5:.1f} ({total})"


def is_named(shortcut: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a search found a shortcut by its name."""
    return lambda row: shortcut in row["named"]


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether an attribute was found that names nothing that is planted."""
    return bool(row["others"])


def conditions(rows: Searched) -> dict[str, Searched]:
    """The searches by what is planted, by number and strength."""
    found = {"nothing": [row for row in rows if not row["number"]]}
    for number in range(1, 1 + MOST_PLANTED):
        for strength in STRENGTHS:
            own = [row for row in rows if (row["number"], row["strength"]) == (number, strength)]
            found[f"{number} at {strength:g}"] = own
    return found


def discovery_table(rows: Searched) -> list[str]:
    """Power, false discoveries and errors by number of shortcuts and strength."""
    lines = [
        "| Planted | Background found | Color found | Something else found | False discovery rate "
        "| Found with shuffled labels |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, own in conditions(rows).items():
        powers = [rate([row for row in own if shortcut in row["planted"]], is_named(shortcut)) for shortcut in NAMED]
        false = [100 * len(row["others"]) / max(len(row["others"]) + len(row["named"]), 1) for row in own]
        error = statistics.stdev(false) / len(false) ** 0.5
        cells = [
            *powers,
            rate(own, is_wrong),
            f"{statistics.fmean(false):.1f} ± {error:.1f}",
            rate(own, lambda row: bool(row["shuffled"])),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, f"| all | | | | | {rate(rows, lambda row: bool(row['shuffled']))} |"]


def others(rows: Searched) -> str:
    """The five things that are found most often and were not planted, those of equal counts by name."""
    counts = Counter(name for row in rows for name in set(row["others"]))
    most = sorted(counts, key=lambda name: (-counts[name], name))[:5]
    return ", ".join(f"{name} ({counts[name]})" for name in most)


def single_table(rows: Searched) -> list[str]:
    """What is found where one shortcut is planted and nothing else."""
    lines = [
        "| Planted alone | Strength | Found by name | Something else found | What else (draws) |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for shortcut in SHORTCUTS:
        for strength in STRENGTHS:
            own = [row for row in rows if row["planted"] == [shortcut] and row["strength"] == strength]
            cells = [
                shortcut,
                f"{strength:g}",
                rate(own, lambda row: bool(row["named"])) if shortcut in NAMED else "no template",
                rate(own, is_wrong),
                others(own),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    nothing = [row for row in rows if not row["number"]]
    return [*lines, f"| nothing | 0.5 | | {rate(nothing, is_wrong)} | {others(nothing)} |"]


def power_table(rows: Searched) -> list[str]:
    """Power for a named shortcut, by the unnamed ones beside it."""
    lines = [
        f"| | Strength | {' | '.join(f'{number} unnamed beside it' for number in range(MOST_PLANTED))} |",
        f"| --- | ---: | {' | '.join('---:' for _ in range(MOST_PLANTED))} |",
    ]
    for shortcut in NAMED:
        for strength in STRENGTHS:
            own = [row for row in rows if shortcut in row["planted"] and row["strength"] == strength]
            cells = [
                rate([row for row in own if len(set(row["planted"]) & set(UNNAMED)) == number], is_named(shortcut))
                for number in range(MOST_PLANTED)
            ]
            lines.append(f"| {shortcut} | {strength:g} | {' | '.join(cells)} |")
    return lines


def complete_replicates(store: Store) -> list[int]:
    """Those of which every method is in the store."""
    return [number for number in range(REPLICATES) if all(Cell(method, number) in store for method in METHODS)]


def repair_values(store: Store, method: str, by: str) -> list[float]:
    """The worst group by a shortcut, or the average, of every complete replicate, in %."""
    found = [store[Cell(method, number)] for number in complete_replicates(store)]
    return [100 * (own["average"] if by == "average" else min(own["groups"][by].values())) for own in found]


def repair_differences(store: Store, pair: tuple[str, str], by: str) -> list[float]:
    """The first method less the second, of every complete replicate, in points."""
    first, second = (repair_values(store, method, by) for method in pair)
    return [left - right for left, right in zip(first, second, strict=True)]


def _head(first: str) -> list[str]:
    names = [f"by {name}" if name != "average" else name for name in BY]
    return [f"| {first} | {' | '.join(names)} |", f"| --- | {' | '.join('---:' for _ in BY)} |"]


def repair_table(store: Store) -> list[str]:
    """The worst group by every shortcut and the average, mean over replicates, in %."""
    lines = _head("Worst group, %")
    for method in METHODS:
        means = [statistics.fmean(repair_values(store, method, by)) for by in BY]
        lines.append(f"| {method} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return lines


def repair_paired_table(store: Store) -> list[str]:
    """The same as differences in points, with their standard errors."""
    lines = _head("Points")
    for pair in PAIRS:
        cells = [mean_and_error(repair_differences(store, pair, by)) for by in BY]
        lines.append(f"| {' less '.join(pair)} | {' | '.join(cells)} |")
    return lines


@palette.page_style()
def draw(store: Store, path: Path) -> None:
    """What is found where one shortcut is planted, and the worst group by every shortcut; what there is of both."""
    parts: list[Callable[[Axes], None]] = []
    if rows := searched(store, searches(), MOST_PLANTED):
        parts.append(partial(_draw_single, rows))
    if complete_replicates(store):
        parts.append(partial(_draw_repair, store))
    figure = Figure(figsize=(9, 3 * len(parts)), layout="constrained")
    for part, panel in zip(parts, figure.subplots(len(parts), squeeze=False).flat, strict=True):
        part(panel)
    palette.save(figure, path)


def _draw_single(rows: Searched, panel: Axes) -> None:
    names = [(shortcut, strength) for shortcut in SHORTCUTS for strength in STRENGTHS]
    cases = [[row for row in rows if row["planted"] == [name] and row["strength"] == own] for name, own in names]
    labels = [f"{name}\nat {strength:g}" for name, strength in names]
    cases.append([row for row in rows if not row["number"]])
    labels.append("nothing")
    kinds: tuple[tuple[str, str, Callable[[dict[str, Any]], bool]], ...] = (
        ("found by its name", palette.KL, lambda row: bool(row["named"])),
        ("something else found", palette.FLYP, is_wrong),
        ("found with shuffled labels", palette.ZERO_SHOT, lambda row: bool(row["shuffled"])),
    )
    for place, (label, color, happened) in enumerate(kinds):
        heights = [100 * statistics.fmean(happened(row) for row in own) if own else 0 for own in cases]
        positions = [number + 0.27 * (place - 1) for number in range(len(cases))]
        panel.bar(positions, heights, 0.25, color=color, label=label)
    panel.set_xticks(range(len(cases)), labels, fontsize=8)
    panel.set(ylabel="training sets, %", title="One shortcut planted, or none: what discovery finds")
    panel.set_ylim(0, 125)
    panel.set_yticks(range(0, 101, 20))
    panel.legend(ncols=3, loc="upper center")


def _draw_repair(store: Store, panel: Axes) -> None:
    for place, method in enumerate(METHODS):
        found = [repair_values(store, method, by) for by in BY]
        errors = [2 * statistics.stdev(own) / len(own) ** 0.5 if len(own) > 1 else 0 for own in found]
        panel.errorbar(
            [number + 0.11 * (place - (len(METHODS) - 1) / 2) for number in range(len(BY))],
            [statistics.fmean(own) for own in found],
            errors,
            fmt="o",
            ms=5,
            capsize=2,
            color=SERIES[place],
            label=method,
        )
    panel.set_xticks(range(len(BY)), [f"by {name}" if name != "average" else name for name in BY])
    panel.set(
        ylabel="worst group (or average), %",
        title="Four shortcuts planted at 0.95, of which templates name the background",
    )
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "title": "bars: \u00b1 two standard errors"}
    panel.legend(ncols=len(METHODS), columnspacing=1, handletextpad=0.2, **legend)


INTRODUCTION = """
By `python -m benchmarks.shortcuts`, on eight shapes of the demo's world. Shortcuts are the background (grass or
water) and the color of the shape (navy or maroon), which templates name, and a border, a tint and JPEG of quality
10, which none does. A shortcut at 0.95 is in 95% of the images of one half of the classes and in 5% of those of
the other; all others are in one half of all images. Any two halves of classes have one half of their classes in
common. What was expected: several_shortcuts_hypotheses.md, part B, committed before the first run.
"""
SEARCHED = """
All subsets of the shortcuts are planted in turn. Searched for are the demo's 15 backgrounds, its 4 colors and its
15 phrases about nothing visible. Figures are % of the training sets, with their standard errors and, in
parentheses, their number. "Something else" is any attribute that names nothing that is planted; the false
discovery rate is the mean of its share of what is found. What `discover_spuriosity` claims is that at most 1% of
training sets whose labels are independent of the images (shuffled) have anything found.
"""
REPAIRED = """
Background, border, tint and JPEG are planted at 0.95; the pool is that of the backgrounds. In test images each
of them is equally frequent in every class. The four groups of a shortcut are the two halves of the classes, with and
without it.
"""


def models_of(number: int, of: int) -> str:
    """How many pre-trained models the first `number` of so many runs have."""
    models = -(-len(BASES) * number // of)
    return f"{models} of {len(BASES)} pre-trained models"


def as_markdown(store: Store) -> str:
    """The page; a part of which nothing is complete is left out."""
    rows = searched(store, searches(), MOST_PLANTED)
    draws, replicates = len(rows) // (1 + MOST_PLANTED * len(STRENGTHS)), len(complete_replicates(store))
    lines = [
        "# Several shortcuts at once",
        *INTRODUCTION.splitlines(),
        "",
        "![What is found, and the worst group by shortcut](shortcuts.png)",
        "",
        "Bars of worst groups are two standard errors.",
    ]
    if draws:
        lines += [
            "",
            "## What discovery finds",
            "",
            f"{draws} of {DRAWS} draws, each of a training set of 480 images for every row of the first table, on "
            f"{models_of(draws, DRAWS)}.",
            *SEARCHED.splitlines()[1:],
            "",
            *discovery_table(rows),
            "",
            *single_table(rows),
            "",
            *power_table(rows),
        ]
    if replicates:
        lines += [
            "",
            "## What repairing one does to the others",
            "",
            f"{replicates} of {REPLICATES} replicates, each with images of its own, on "
            f"{models_of(replicates, REPLICATES)}.",
            *REPAIRED.splitlines()[1:],
            "",
            *repair_table(store),
            "",
            *repair_paired_table(store),
        ]
    return "\n".join([*lines, "", *NOTES.read_text(encoding="utf-8").splitlines()]) + "\n"


def write_report(store: Store, folder: Path) -> None:
    """SHORTCUTS.md and its plot."""
    if not searched(store, searches(), MOST_PLANTED) and not complete_replicates(store):
        print("no part is complete yet")
        return
    write_text_atomically(folder / "SHORTCUTS.md", as_markdown(store))
    draw(store, folder / "shortcuts.png")
