"""The figures of a report, drawn with Matplotlib at the width of a phone; color never is the only difference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from starft_hf.evaluation.results import CurvePoint
from starft_hf.report.rows import Entry, Section, Summary
from starft_hf.report.series import Bins, Line
from starft_hf.utils.plotting import INK, PAPER, SERIES, SOFT
from starft_hf.utils.text import one_line, percent


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# In inches: about as many points as a phone has pixels, so that text of 11 points is 11 pixels high there.
WIDTH = 4.6

# Points of accuracy that an axis without 0 covers at least.
_LEAST_SPAN = 20

_DASHED: Any = (0, (3, 3))
_HATCHES = ("////", "....", "xxxx", "----", "++++")
_MARKERS = ("o", "s", "^", "v", "P", "X", "*")
_DASHES: tuple[Any, ...] = ((0, (6, 2)), "-", (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Style:
    """What distinguishes a method from others, with and without color."""

    color: str
    hatch: str
    marker: str
    dash: Any

    @classmethod
    def of(cls, entry: Entry) -> "Style":
        """The style of the method; the baseline is gray, plain and solid."""
        if entry.number == 0:
            return cls(SERIES[0], "", "D", (0, (1, 1)))
        kinds = (SERIES[1:], _HATCHES, _MARKERS, _DASHES)
        return cls(*(kind[(entry.number - 1) % len(kind)] for kind in kinds))

    @property
    def line(self) -> dict[str, Any]:
        """Settings of a line with markers."""
        look = {"color": self.color, "linestyle": self.dash, "linewidth": 1.6}
        return look | {"marker": self.marker, "markersize": 6, "markeredgecolor": PAPER, "markeredgewidth": 0.6}


def short(name: str, length: int = 34) -> str:
    """A name that fits a figure, without the leading underscore by which Matplotlib hides labels."""
    name = one_line(name)
    name = name if len(name) <= length else f"{name[: length - 1]}\u2026"
    return f"\u200b{name}" if name.startswith("_") else name


def _figure(height: float, labels: Sequence[str]) -> "Figure":
    """An empty figure of a height in inches, with room for a legend of `labels` below."""
    from matplotlib.figure import Figure

    lines = math.ceil(len(labels) / _legend_columns(labels))
    return Figure(figsize=(WIDTH, height + 0.22 * lines), layout="constrained")


def _legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    columns = _legend_columns(labels)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, columnspacing=1.2, borderpad=0.1)


def _legend_columns(labels: Sequence[str]) -> int:
    # About 52 letters fit side by side, and a handle takes the room of seven.
    most = max(1, 52 // (max(map(len, labels)) + 7))
    # Lines of equal length.
    return math.ceil(len(labels) / math.ceil(len(labels) / most))


def _without_spine(axis: "Axes") -> None:
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("accuracy in %")


def means(summaries: Sequence[Summary]) -> np.ndarray:
    """Means in percent."""
    return 100 * np.array([summary.mean for summary in summaries])


def deviations(summaries: Sequence[Summary]) -> np.ndarray | None:
    """Standard deviations in percent, or None with one seed each."""
    if all(summary.deviation is None for summary in summaries):
        return None
    return 100 * np.array([summary.deviation or 0.0 for summary in summaries])


def draw_overview(section: Section) -> "Figure":
    """Worst group and average of every model, joined by their gap; the baseline's worst group is drawn through."""
    rows, measures = section.rows, ["worst group", "average"]
    figure = _figure(0.75 + 0.36 * len(rows), measures)
    axis = figure.subplots()
    places, colors = range(len(rows)), [Style.of(entry).color for entry in section.entries]
    of_all = [row.worst_group for row in rows], [row.average for row in rows]
    worst, average = (means(summaries) for summaries in of_all)
    axis.hlines(places, worst, average, colors=colors, linewidth=2.5, alpha=0.55, zorder=2)
    for values, summaries in zip((worst, average), of_all, strict=True):
        if (spread := deviations(summaries)) is not None:
            axis.errorbar(values, places, xerr=spread, fmt="none", color=INK, elinewidth=1, capsize=2.5, zorder=3)
    full: dict[str, Any] = {"s": 64, "edgecolors": INK, "linewidths": 0.8, "zorder": 4}
    hollow: dict[str, Any] = {"s": 58, "marker": "s", "color": PAPER, "linewidths": 2, "zorder": 4}
    axis.scatter(worst, places, color=colors, **full)
    axis.scatter(average, places, edgecolors=colors, **hollow)
    if section.reference is not None:
        axis.axvline(100 * section.reference.worst_group.mean, color=SOFT, linewidth=1, linestyle=_DASHED, zorder=1)
    # Small differences should look small.
    low, high = axis.get_xlim()
    high = min(max(high, low + _LEAST_SPAN), max(high, 101))
    axis.set_xlim(min(low, high - _LEAST_SPAN), high)
    axis.set_yticks(places, [short(row.label, 22) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    _without_spine(axis)
    handles = [axis.scatter([], [], color=SOFT, **full), axis.scatter([], [], edgecolors=SOFT, **hollow)]
    _legend(figure, handles, measures)
    return figure


def draw_groups(section: Section) -> "Figure":
    """The accuracy of every group, of the models as trained, as bars with the standard deviation over seeds."""
    groups, rows = section.groups, [row for _, row in section.trained]
    thickness, pause = 0.17, 0.36
    cluster = thickness * len(rows) + pause
    labels = [short(row.label) for row in rows]
    figure = _figure(0.6 + cluster * len(groups), labels)
    axis = figure.subplots()
    starts = cluster * np.arange(len(groups)) + pause
    handles, end = [], 0.0
    for index, (entry, row) in enumerate(section.trained):
        style = Style.of(entry)
        values = [row.groups[group] for group in groups]
        lengths, spread = means(values), deviations(values)
        look: dict[str, Any] = {"color": style.color, "edgecolor": PAPER, "hatch": style.hatch, "linewidth": 0.6}
        look |= {"xerr": spread, "ecolor": INK, "capsize": 1.8, "error_kw": {"color": INK, "elinewidth": 1}}
        bars = axis.barh(starts + thickness * (index + 0.5), lengths, 0.94 * thickness, **look)
        axis.bar_label(bars, [percent(value.mean) for value in values], padding=4, fontsize=9)
        handles.append(bars)
        end = max(end, *(lengths if spread is None else lengths + spread))
    for start, group in zip(starts, groups, strict=True):
        axis.text(0, start - 0.06, f"{short(group, 44)} ({section.sizes[group]})", va="bottom", fontsize=10.5)
    # Leaves room for the number beside the longest bar.
    axis.set(xlim=(0, max(113, end + 13)), ylim=(cluster * len(groups) + 0.06, 0.02), yticks=[])
    axis.set_xticks(range(0, 101, 20))
    axis.spines["bottom"].set_bounds(0, 100)
    _without_spine(axis)
    _legend(figure, handles, labels)
    return figure


def draw_reliability(models: Sequence[tuple[Entry, Bins]]) -> "Figure":
    """Accuracy against confidence, bin by bin, and the number of predictions in every bin."""
    labels = [short(entry.label) for entry, _ in models]
    figure = _figure(5.2, labels)
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    diagram.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle=_DASHED)
    diagram.annotate(
        "calibrated", (14, 14), (0, 4), textcoords="offset points", rotation=45, rotation_mode="anchor",
        transform_rotates_text=True, color=INK, fontsize=9,
    )  # fmt: skip
    handles = []
    for entry, bins in models:
        style = Style.of(entry)
        handles += diagram.plot(100 * bins.confidence[bins.shown], 100 * bins.accuracy[bins.shown], **style.line)
        edges = np.linspace(0, 100, len(bins.count) + 1)
        counts.stairs(bins.count, edges, color=style.color, linestyle=style.dash, linewidth=1.6)
    diagram.set(xlim=(0, 101), ylim=(0, 102), ylabel="accuracy in %")
    counts.set(xlabel="confidence in %", ylabel="predictions")
    counts.set_ylim(bottom=0)
    figure.align_ylabels()
    _legend(figure, handles, labels)
    return figure


def draw_training(entries: Sequence[Entry], panels: Mapping[str, Sequence[Line | None]]) -> "Figure":
    """Losses by step, a panel each with the line of every model, or None for a model without; the first has all."""
    labels = [short(entry.label) for entry in entries]
    figure = _figure(0.5 + 1.9 * len(panels), labels)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    handles: list[Any] = []
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        pairs = zip(entries, lines, strict=True)
        handles += [_draw_line(axis, line, Style.of(entry)) for entry, line in pairs if line is not None]
        axis.set(title=title, ylabel="nats")
        low, high = axis.get_ylim()
        # From 0, unless that would squeeze lines that are far from it into a strip.
        if low < 0.6 * high:
            axis.set_ylim(bottom=min(0.0, low))
    axes[-1].set_xlabel("optimizer step")
    axes[-1].locator_params(axis="x", integer=True)
    figure.align_ylabels()
    _legend(figure, handles[: len(entries)], labels)
    return figure


def _draw_line(axis: "Axes", line: Line, style: Style) -> Any:
    for x, y in line.seeds if len(line.seeds) > 1 else ():
        axis.plot(x, y, color=style.color, linewidth=0.7, alpha=0.35)
    # A few markers: dashes alone are hard to distinguish in a noisy line.
    look = style.line | {"markersize": 5, "markeredgewidth": None, "markevery": max(1, len(line.x) // 8)}
    return axis.plot(line.x, line.y, **look)[0]


def draw_wise_ft(models: Sequence[tuple[Entry, Sequence[CurvePoint]]], axes: tuple[str, str]) -> "Figure":
    """Accuracy of the worst group against the average, of models with curves in order of alpha."""
    # The ends are marked rather than labeled, because the labels of several curves would overlap.
    edge: dict[str, Any] = {"edgecolors": INK, "linewidths": 1.2}
    start = {"s": 60, "marker": "D", "color": SERIES[0], "zorder": 5, **edge}
    present = {point.alpha for _, curve in models for point in curve}
    looks = {"zero-shot": start} if 0 in present else {}
    looks |= {"fine-tuned": {"s": 70, "color": PAPER, **edge}} if 1 in present else {}
    labels = [*(short(entry.label) for entry, _ in models), *looks]
    figure = _figure(4.1, labels)
    axis = figure.subplots()
    handles: list[Any] = []
    for entry, curve in models:
        style = Style.of(entry)
        points = 100 * np.array([(point.average, point.worst_group) for point in curve])
        handles += axis.plot(*points.T, **style.line)
        tuned = {"s": 80, "marker": style.marker, "color": style.color, "zorder": 4, **edge}
        for point, place in zip(curve, points, strict=True):
            if point.alpha in (0, 1):
                axis.scatter(*place, **(tuned if point.alpha else start))
    handles += [axis.scatter([], [], **look) for look in looks.values()]
    axis.margins(0.1)
    axis.set(xlabel=f"{short(axes[0])}, in %", ylabel=f"{short(axes[1])}, in %")
    _legend(figure, handles, labels)
    return figure


@dataclass(frozen=True)
class WeightPoint:
    """A model with its weight, or None for a method without one, and whether its run is finished."""

    weight: float | None
    average: float
    worst_group: float
    finished: bool = True


def draw_weights(models: Mapping[str, Sequence[WeightPoint]], worst: str | None) -> "Figure":
    """Worst group and average of every method against its weight; those of methods without one are drawn through.

    `worst` names the worst of what is shown; None shows the average only.
    """
    measures = [*(["worst_group"] if worst else []), "average"]
    names = {"worst_group": worst, "average": "average"}
    labels = [short(f"{method}, {names[measure]}") for method in models for measure in measures]
    labels += ["not finished"] if any(not point.finished for points in models.values() for point in points) else []
    figure = _figure(4.1, labels)
    axis = figure.subplots()
    handles: list[Any] = []
    for number, points in enumerate(models.values()):
        color, marker = SERIES[number % len(SERIES)], _MARKERS[number % len(_MARKERS)]
        for measure in measures:
            dash = "-" if measure == measures[0] else _DASHED
            look: dict[str, Any] = {"color": color, "linestyle": dash, "linewidth": 1.6}
            placed = sorted(
                (point.weight, 100 * getattr(point, measure), point.finished) for point in points if point.weight
            )
            if not placed:
                handles.append(axis.axhline(100 * getattr(points[0], measure), **look))
                continue
            axis.plot(*zip(*(point[:2] for point in placed), strict=True), **look)
            for weight, value, finished in placed:
                axis.plot(
                    weight, value, marker, color=color, markerfacecolor=color if finished else PAPER, markersize=7
                )
            handles += axis.plot([], [], marker=marker, **look)
    if len(labels) > len(handles):
        handles += axis.plot([], [], "o", color=SOFT, markerfacecolor=PAPER, markersize=7)
    if any(point.weight for points in models.values() for point in points):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="weight of the regularizer", ylabel="accuracy in %")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, high - _LEAST_SPAN), high)
    _legend(figure, handles, labels)
    return figure
