"""The demo's figure: its world, its groups, and the effect of fine-tuning on them."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from starft_hf.demo.experiment import HELD_OUT, Setting
from starft_hf.demo.results import section_of
from starft_hf.demo.world import GROUP_NAMES, make_split
from starft_hf.report import RobustnessReport
from starft_hf.report.plots import deviations, means
from starft_hf.report.rows import Section
from starft_hf.training.comparison import ZERO_SHOT


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


COLORS = {ZERO_SHOT: "#7f7f7f", "FLYP": "#d1495b", "kl": "#edae49", "star": "#00798c"}


def draw_plot(report: RobustnessReport, setting: Setting) -> bytes:
    """A PNG with example images, the accuracy of every group, and average against worst group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.3), layout="constrained")
    examples, bars, paths = np.asarray(figure.subfigures(1, 3, width_ratios=[1.15, 2.0, 1.6]))
    scored = section_of(report, setting.split)
    _draw_examples(examples, setting)
    _draw_groups(bars.subplots(), scored, section_of(report, HELD_OUT))
    _draw_paths(paths.subplots(), scored, setting.alpha)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_examples(figure: "SubFigure", setting: Setting) -> None:
    figure.suptitle("The groups, and their fraction\nof the training images", fontsize=11)
    scored = make_split("validation")
    for axis, group in zip(figure.subplots(2, 2).flat, GROUP_NAMES, strict=True):
        home, place = group.split(" class on ")
        axis.imshow(next(row["image"] for row in scored if row["group"] == group))
        fraction = setting.correlation if home == place else 1 - setting.correlation
        axis.set_title(f"{group}\n{fraction / 2:.1%}", fontsize=9)
        axis.set_axis_off()


def _draw_groups(axis: "Axes", scored: Section, held_out: Section) -> None:
    groups = sorted(scored.groups)
    width = 0.8 / len(scored.trained)
    for index, ((_, row), (_, other)) in enumerate(zip(scored.trained, held_out.trained, strict=True)):
        values = [*(row.groups[group] for group in groups), other.average]
        places = np.arange(len(values)) + (index - (len(scored.trained) - 1) / 2) * width
        look: dict[str, Any] = {"color": COLORS[row.method], "label": row.method, "error_kw": {"elinewidth": 1}}
        axis.bar(places, means(values), width, yerr=deviations(values), **look)
    names = [*(group.replace(" on ", "\non ") for group in groups), "held-out\nclasses"]
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set(ylabel="accuracy in %", ylim=(0, 119), title="Accuracy of every group")
    axis.set_yticks(range(0, 101, 20))
    axis.legend(ncols=len(scored.trained), loc="upper center", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_paths(axis: "Axes", scored: Section, alpha: float) -> None:
    points = {row.label: means([row.average, row.worst_group]) for row in scored.rows}
    start = points[ZERO_SHOT]
    axis.scatter(start[:1], start[1:], s=80, marker="D", color=COLORS[ZERO_SHOT], label=ZERO_SHOT, zorder=4)
    for method in dict.fromkeys(row.method for row in scored.rows if row.method != ZERO_SHOT):
        color, models = COLORS[method], [entry for entry in scored.entries if entry.method == method]
        results = [run.results[scored.dataset] for entry in models for run in entry.runs]
        average, worst = 100 * np.transpose([(result.accuracy, result.worst_group_accuracy) for result in results])
        axis.scatter(average, worst, s=12, color=color, alpha=0.35, linewidths=0, zorder=2)
        tuned, halfway = (points[entry.label] for entry in models)
        axis.plot(*np.transpose([start, halfway, tuned]), color=color, linewidth=1, zorder=1)
        look: dict[str, Any] = {"s": 70, "edgecolors": color, "linewidths": 1.8, "zorder": 3}
        axis.scatter(*tuned, color=color, label=method, **look)
        axis.scatter(*halfway, color="white", **look)
    axis.scatter([], [], s=70, color="white", edgecolors="black", label=f"WiSE-FT {alpha:g}")
    axis.set(xlabel="average accuracy in %", ylabel="worst group in %", title="Average and worst group")
    axis.legend(fontsize=8.5, loc="best")
    axis.spines[["top", "right"]].set_visible(False)
