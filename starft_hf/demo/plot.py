"""The demo's figure: its world, its groups, and the effect of fine-tuning on them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from starft_hf.demo.experiment import HELD_OUT, Setting
from starft_hf.demo.results import section_of
from starft_hf.demo.world import GROUP_NAMES, make_split
from starft_hf.report import RobustnessReport
from starft_hf.report.plots import Style, deviations, means
from starft_hf.report.rows import Section
from starft_hf.training.methods import ZERO_SHOT
from starft_hf.utils.plotting import INK, PAPER, SOFT, as_png, drawing


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


@drawing()
def draw_plot(report: RobustnessReport, setting: Setting, dark: bool = False) -> bytes:
    """A PNG with example images, the accuracy of every group, and average against worst group."""
    from matplotlib.figure import Figure

    # At the 830 pixels of a README, text of 9 points is 9 pixels high.
    figure = Figure(figsize=(11, 4), layout="constrained")
    examples, bars, paths = np.asarray(figure.subfigures(1, 3, width_ratios=[1.05, 2.2, 1.5]))
    scored = section_of(report, setting.split)
    _draw_examples(examples, setting)
    _draw_groups(bars.subplots(), scored, section_of(report, HELD_OUT))
    _draw_paths(paths.subplots(), scored, setting.alpha)
    return as_png(figure, dark=dark)


def _draw_examples(figure: "SubFigure", setting: Setting) -> None:
    figure.suptitle("The groups, and their fraction\nof the training images", fontsize=11)
    scored = make_split("validation")
    for axis, group in zip(figure.subplots(2, 2).flat, GROUP_NAMES, strict=True):
        home, place = group.split(" class on ")
        axis.imshow(next(row["image"] for row in scored if row["group"] == group))
        fraction = setting.correlation if home == place else 1 - setting.correlation
        axis.set_title(f"{home} class\non {place}: {fraction / 2:.1%}", fontsize=9)
        axis.set_axis_off()


def _draw_groups(axis: "Axes", scored: Section, held_out: Section) -> None:
    groups = sorted(scored.groups)
    width = 0.8 / len(scored.trained)
    for index, ((entry, row), (_, other)) in enumerate(zip(scored.trained, held_out.trained, strict=True)):
        values = [*(row.groups[group] for group in groups), other.average]
        places = np.arange(len(values)) + (index - (len(scored.trained) - 1) / 2) * width
        error: dict[str, Any] = {"elinewidth": 1, "ecolor": INK}
        look: dict[str, Any] = {"color": Style.of(entry).color, "label": row.method, "error_kw": error}
        axis.bar(places, means(values), width, yerr=deviations(values), **look)
    seeds = len(scored.trained[-1][1].seeds)
    if seeds > 1:
        axis.errorbar(
            [], [], [], fmt="none", color=INK, elinewidth=1, label=f"\u00b1 standard deviation, {seeds} seeds"
        )
    names = [*(group.replace(" on ", "\non ") for group in groups), "held-out\nclasses"]
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set(ylabel="accuracy in %", ylim=(0, 128), title="Accuracy of every group")
    axis.set_yticks(range(0, 101, 20))
    axis.legend(ncols=3, loc="upper center", columnspacing=1.2, handlelength=1.5, fontsize=9.5)


def _draw_paths(axis: "Axes", scored: Section, alpha: float) -> None:
    points = {row.label: means([row.average, row.worst_group]) for row in scored.rows}
    colors = {entry.method: Style.of(entry).color for entry in scored.entries}
    start = points[ZERO_SHOT]
    axis.scatter(start[:1], start[1:], s=80, marker="D", color=colors.pop(ZERO_SHOT), label=ZERO_SHOT, zorder=4)
    for method, color in colors.items():
        models = [entry for entry in scored.entries if entry.method == method]
        results = [run.classified[scored.dataset] for entry in models for run in entry.runs]
        average, worst = 100 * np.transpose([(result.accuracy, result.worst_group_accuracy) for result in results])
        axis.scatter(average, worst, s=12, color=color, alpha=0.35, linewidths=0, zorder=2)
        tuned, halfway = (points[entry.label] for entry in models)
        axis.plot(*np.transpose([start, halfway, tuned]), color=color, linewidth=1, zorder=1)
        look: dict[str, Any] = {"s": 70, "edgecolors": color, "linewidths": 1.8, "zorder": 3}
        axis.scatter(*tuned, color=color, label=method, **look)
        axis.scatter(*halfway, color=PAPER, **look)
    axis.scatter([], [], s=70, color=PAPER, edgecolors=INK, label=f"WiSE-FT {alpha:g}")
    if len(scored.trained[-1][1].seeds) > 1:
        axis.scatter([], [], s=12, color=SOFT, linewidths=0, label="one seed")
    axis.set(xlabel="average accuracy in %", ylabel="worst group in %", title="Average and worst group")
    axis.legend(fontsize=9.5, loc="best", handlelength=1.2)
