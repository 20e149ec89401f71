"""The figures of a report, drawn with Matplotlib at the width of a phone; colour is never all that tells two apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from starft_hf.evaluation.results import CurvePoint
from starft_hf.report.series import Bins, Line
from starft_hf.report.svg import INK, PAPER, SERIES, SOFT
from starft_hf.report.table import Entry, Row, Summary
from starft_hf.utils.text import one_line, percent


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# In inches: about as many points as a phone has pixels, so that text of 11 points is 11 pixels high there.
WIDTH = 4.6

_HATCHES = ("////", "....", "xxxx", "----", "++++")
_MARKERS = ("o", "s", "^", "v", "P", "X", "*")
_DASHES: tuple[Any, ...] = ((0, (6, 2)), "-", (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Style:
    """What tells a method from others, with and without colours."""

    colour: str
    hatch: str
    marker: str
    dash: Any


def styles_of(entries: Sequence[Entry], baseline: str) -> dict[str, Style]:
    """A style for every method; the baseline is grey, plain and solid."""
    others = [method for method in dict.fromkeys(entry.method for entry in entries) if method != baseline]
    styles = {baseline: Style(SERIES[0], "", "D", (0, (1, 1)))}
    for index, method in enumerate(others):
        colour = SERIES[1 + index % (len(SERIES) - 1)]
        hatch, marker, dash = (kinds[index % len(kinds)] for kinds in (_HATCHES, _MARKERS, _DASHES))
        styles[method] = Style(colour, hatch, marker, dash)
    return styles


def short(name: str, length: int = 34) -> str:
    """A name that fits a figure. It never begins with the underscore by which Matplotlib hides labels."""
    name = one_line(name)
    name = name if len(name) <= length else f"{name[: length - 1]}\u2026"
    return f"\u200b{name}" if name.startswith("_") else name


def _figure(height: float, labels: Sequence[str]) -> "Figure":
    """An empty figure of a height in inches, and what a legend of `labels` needs below that."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = math.ceil(len(labels) / len(_legend_columns(labels)))
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05)
    return Figure(figsize=(WIDTH, height + 0.22 * lines), layout=layout)


def _legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    columns = _legend_columns(labels)
    order = [index for column in columns for index in column]
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="outside lower left",
        ncols=len(columns),
        columnspacing=1.2,
        borderpad=0.1,
    )


def _legend_columns(labels: Sequence[str]) -> list[range]:
    """Which labels stand in which column: Matplotlib fills columns, and lines are what is read."""
    for number in range(len(labels), 1, -1):
        columns = [range(column, len(labels), number) for column in range(number)]
        widths = [max(len(labels[index]) for index in column) for column in columns]
        # About 52 letters fit side by side, and a handle takes the room of seven.
        if sum(widths) + 7 * number <= 52:
            return columns
    return [range(len(labels))]


def _in_percent(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return 100 * np.asarray(values, dtype=float)


def _deviation(summary: Summary) -> float:
    return 100 * (summary.deviation or 0.0)


def draw_overview(rows: Sequence[Row], styles: Mapping[str, Style], reference: Row | None) -> "Figure":
    """Worst group and average of every model, joined by their gap.

    Args:
        rows: of one data set.
        styles: by method.
        reference: the baseline's row, whose worst group is drawn through; None without one.
    """
    measures = ["worst group", "average"]
    figure = _figure(0.75 + 0.36 * len(rows), measures)
    axis = figure.subplots()
    for place, row in enumerate(rows):
        colour = styles[row.method].colour
        worst, average = 100 * row.worst_group.mean, 100 * row.average.mean
        axis.plot([worst, average], [place, place], color=colour, linewidth=2.5, alpha=0.55, zorder=2)
        for summary, value in ((row.worst_group, worst), (row.average, average)):
            if summary.deviation:
                axis.errorbar(value, place, xerr=_deviation(summary), color=INK, elinewidth=1, capsize=2.5, zorder=3)
        axis.scatter(worst, place, s=64, color=colour, edgecolors=INK, linewidths=0.8, zorder=4)
        axis.scatter(average, place, s=58, marker="s", color=PAPER, edgecolors=colour, linewidths=2, zorder=4)
    if reference is not None:
        axis.axvline(100 * reference.worst_group.mean, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    axis.set_yticks(range(len(rows)), [short(row.label, 22) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", linewidth=0.8)
    axis.set_xlabel("accuracy in %")
    worst_handle = axis.scatter([], [], s=64, color=SOFT, edgecolors=INK, linewidths=0.8)
    average_handle = axis.scatter([], [], s=58, marker="s", color=PAPER, edgecolors=SOFT, linewidths=2)
    _legend(figure, [worst_handle, average_handle], measures)
    return figure


def draw_groups(
    rows: Sequence[Row], groups: Sequence[str], sizes: Mapping[str, int], styles: Mapping[str, Style]
) -> "Figure":
    """The accuracy of every group as bars, with the standard deviation over seeds.

    Args:
        rows: the models, on one data set.
        groups: names of the groups, from top to bottom.
        sizes: rows in every group.
        styles: by method.
    """
    thickness, pause = 0.17, 0.36
    cluster = thickness * len(rows) + pause
    labels = [short(row.label) for row in rows]
    figure = _figure(0.6 + cluster * len(groups), labels)
    axis = figure.subplots()
    handles = []
    for index, row in enumerate(rows):
        style = styles[row.method]
        places = [cluster * number + pause + thickness * (index + 0.5) for number in range(len(groups))]
        values = [row.groups[group] for group in groups]
        means = [100 * value.mean for value in values]
        look: dict[str, Any] = {"color": style.colour, "edgecolor": PAPER, "hatch": style.hatch, "linewidth": 0.6}
        handles.append(axis.barh(places, means, 0.94 * thickness, **look))
        for place, mean, value in zip(places, means, values, strict=True):
            spread = _deviation(value)
            if spread:
                axis.errorbar(mean, place, xerr=spread, color=INK, elinewidth=1, capsize=1.8)
            label = percent(value.mean)
            axis.annotate(
                label, (mean + spread, place), (4, 0), textcoords="offset points", va="center_baseline", fontsize=9
            )
    for number, group in enumerate(groups):
        text = f"{short(group, 44)} ({sizes[group]})"
        axis.text(0, cluster * number + pause - 0.06, text, va="bottom", ha="left", fontsize=10.5)
    # Beside the longest bar its figure has to fit.
    end = max(100 * row.groups[group].mean + _deviation(row.groups[group]) for row in rows for group in groups)
    axis.set(xlim=(0, max(113, end + 13)), ylim=(cluster * len(groups) + 0.06, 0.02), xlabel="accuracy in %")
    axis.set_xticks(range(0, 101, 20))
    axis.spines["bottom"].set_bounds(0, 100)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", linewidth=0.8)
    _legend(figure, handles, labels)
    return figure


def draw_reliability(entries: Sequence[Entry], bins: Sequence[Bins], styles: Mapping[str, Style]) -> "Figure":
    """Accuracy against confidence, bin by bin, and how many predictions every bin has.

    Args:
        entries: the models.
        bins: of every model.
        styles: by method.
    """
    labels = [short(entry.label) for entry in entries]
    figure = _figure(5.2, labels)
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    diagram.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    diagram.annotate(
        "calibrated", (14, 14), (0, 4), textcoords="offset points", rotation=45, rotation_mode="anchor",
        transform_rotates_text=True, color=INK, fontsize=9,
    )  # fmt: skip
    handles = []
    for entry, part in zip(entries, bins, strict=True):
        style = styles[entry.method]
        handles += diagram.plot(
            _in_percent(part.confidence[part.shown]),
            _in_percent(part.accuracy[part.shown]),
            color=style.colour,
            linestyle=style.dash,
            linewidth=1.6,
            marker=style.marker,
            markersize=6,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
        )
        edges = np.linspace(0, 100, len(part.count) + 1)
        counts.stairs(part.count, edges, color=style.colour, linestyle=style.dash, linewidth=1.6)
    diagram.set(xlim=(0, 101), ylim=(0, 102), ylabel="accuracy in %")
    counts.set(xlabel="confidence in %", ylabel="predictions")
    counts.set_ylim(bottom=0)
    figure.align_ylabels()
    for axis in (diagram, counts):
        axis.grid(linewidth=0.8)
    _legend(figure, handles, labels)
    return figure


def draw_training(
    entries: Sequence[Entry], panels: Mapping[str, Sequence[Line | None]], styles: Mapping[str, Style]
) -> "Figure":
    """Losses by step, one panel each.

    Args:
        entries: the models.
        panels: for every loss, by name, the line of every model; None for a model that has none.
        styles: by method.
    """
    labels = [short(entry.label) for entry in entries]
    figure = _figure(0.5 + 1.9 * len(panels), labels)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    handles: dict[int, Any] = {}
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for index, (entry, line) in enumerate(zip(entries, lines, strict=True)):
            if line is not None:
                handles[index] = _draw_line(axis, line, styles[entry.method])
        axis.set(title=title, ylabel="nats")
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.grid(linewidth=0.8)
    axes[-1].set_xlabel("optimiser step")
    figure.align_ylabels()
    _legend(figure, [handles[index] for index in range(len(entries))], labels)
    return figure


def _draw_line(axis: "Axes", line: Line, style: Style) -> Any:
    if len(line.seeds) > 1:
        for x, y in line.seeds:
            axis.plot(x, y, color=style.colour, linewidth=0.7, alpha=0.35)
    # A marker now and then: dashes alone are hard to tell apart in a noisy line.
    every = max(1, len(line.x) // 8)
    look: dict[str, Any] = {"marker": style.marker, "markersize": 5, "markevery": every, "markeredgecolor": PAPER}
    return axis.plot(line.x, line.y, color=style.colour, linestyle=style.dash, linewidth=1.6, **look)[0]


def draw_wise_ft(
    entries: Sequence[Entry],
    curves: Sequence[Sequence[CurvePoint]],
    styles: Mapping[str, Style],
    axes: tuple[str, str],
) -> "Figure":
    """Accuracy out of distribution against accuracy in distribution, for models between two.

    Args:
        entries: the models.
        curves: of every model, in order of alpha.
        styles: by method.
        axes: what the two accuracies are called.
    """
    # Marks rather than numbers at the ends: of several curves these would cover one another.
    ends = {0.0: "zero-shot", 1.0: "fine-tuned"}
    present = [alpha for alpha in ends if any(point.alpha == alpha for curve in curves for point in curve)]
    labels = [*(short(entry.label) for entry in entries), *(ends[alpha] for alpha in present)]
    figure = _figure(4.1, labels)
    axis = figure.subplots()
    handles: list[Any] = []
    for entry, curve in zip(entries, curves, strict=True):
        style = styles[entry.method]
        x = _in_percent([point.in_distribution for point in curve])
        y = _in_percent([point.out_of_distribution for point in curve])
        look: dict[str, Any] = {"marker": style.marker, "markeredgecolor": PAPER, "markeredgewidth": 0.6}
        handles += axis.plot(x, y, color=style.colour, linestyle=style.dash, linewidth=1.6, markersize=6, **look)
        for point, x_end, y_end in zip(curve, x, y, strict=True):
            if point.alpha == 1:
                look = {"s": 80, "marker": style.marker, "color": style.colour, "edgecolors": INK, "linewidths": 1.2}
                axis.scatter(x_end, y_end, zorder=4, **look)
            elif point.alpha == 0:
                axis.scatter(x_end, y_end, zorder=5, **_START)
    marks = {0.0: _START, 1.0: {"s": 70, "color": PAPER, "edgecolors": INK, "linewidths": 1.2}}
    handles += [axis.scatter([], [], **marks[alpha]) for alpha in present]
    axis.margins(0.1)
    axis.set(xlabel=f"{short(axes[0], 34)}, in %", ylabel=f"{short(axes[1], 34)}, in %")
    axis.grid(linewidth=0.8)
    _legend(figure, handles, labels)
    return figure


_START: dict[str, Any] = {"s": 60, "marker": "D", "color": SERIES[0], "edgecolors": INK, "linewidths": 1.2}
