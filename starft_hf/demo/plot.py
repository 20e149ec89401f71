"""The demo's picture: its world, its groups, and what fine-tuning does to them."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from starft_hf.demo.experiment import Setting
from starft_hf.demo.results import Row
from starft_hf.demo.world import GROUP_NAMES, make_split
from starft_hf.training.comparison import ZERO_SHOT


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


COLOURS = {ZERO_SHOT: "#7f7f7f", "FLYP": "#d1495b", "kl": "#edae49", "star": "#00798c"}


def draw_plot(rows: Sequence[Row], setting: Setting) -> bytes:
    """A PNG with example pictures, the accuracy of every group, and average against worst group.

    Args:
        rows: from `as_rows`.
        setting: of the run.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.3), layout="constrained")
    examples, bars, paths = np.asarray(figure.subfigures(1, 3, width_ratios=[1.15, 2.0, 1.6]))
    _draw_examples(examples, setting)
    _draw_groups(bars.subplots(), rows)
    _draw_paths(paths.subplots(), rows, setting)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_examples(figure: "SubFigure", setting: Setting) -> None:
    figure.suptitle("The groups, and their share\nof the training images", fontsize=11)
    shares = {"at home": setting.correlation, "away": 1 - setting.correlation}
    scored = make_split("validation")
    for axis, group in zip(figure.subplots(2, 2).flat, GROUP_NAMES, strict=True):
        home, place = group.split(" class on ")
        axis.imshow(next(row["image"] for row in scored if row["group"] == group))
        share = shares["at home" if home == place else "away"] / 2
        axis.set_title(f"{group}\n{share:.1%}", fontsize=9)
        axis.set_axis_off()


def _draw_groups(axis: "Axes", rows: Sequence[Row]) -> None:
    rows = [row for row in rows if not row.interpolated]
    groups = rows[0].groups
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        values = [*(row.group(group) for group in groups), row.held_out]
        places = np.arange(len(values)) + (index - (len(rows) - 1) / 2) * width
        axis.bar(
            places,
            [value.mean() for value in values],
            width,
            yerr=[value.std(ddof=1) if len(value) > 1 else 0 for value in values],
            color=COLOURS[row.method],
            error_kw={"elinewidth": 1},
            label=row.method,
        )
    names = [*(group.replace(" on ", "\non ") for group in groups), "held-out\nclasses"]
    axis.set_xticks(range(len(names)), names, fontsize=9)
    axis.set(ylabel="accuracy in %", ylim=(0, 119), title="Accuracy of every group")
    axis.set_yticks(range(0, 101, 20))
    axis.legend(ncols=len(rows), loc="upper center", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_paths(axis: "Axes", rows: Sequence[Row], setting: Setting) -> None:
    start = rows[0]
    for tuned in (row for row in rows if row.method != ZERO_SHOT and not row.interpolated):
        halfway = next(row for row in rows if row.method == tuned.method and row.interpolated)
        colour = COLOURS[tuned.method]
        path = [start, halfway, tuned]
        axis.plot(
            [row.average for row in path],
            [row.worst_group for row in path],
            color=colour,
            linewidth=1,
            zorder=1,
        )
        for row, face in ((tuned, colour), (halfway, "white")):
            average, worst = row.averages, row.worst_groups
            axis.scatter(average, worst, s=12, color=colour, alpha=0.35, linewidths=0, zorder=2)
            axis.scatter(row.average, row.worst_group, s=70, color=face, edgecolors=colour, linewidths=1.8, zorder=3)
        axis.scatter([], [], s=70, color=colour, label=tuned.method)
    axis.scatter(
        start.average,
        start.worst_group,
        s=80,
        marker="D",
        color=COLOURS[ZERO_SHOT],
        label=ZERO_SHOT,
        zorder=4,
    )
    axis.scatter([], [], s=70, color="white", edgecolors="black", label=f"WiSE-FT {setting.alpha:g}")
    axis.set(xlabel="average accuracy in %", ylabel="worst group in %", title="Average and worst group")
    axis.legend(fontsize=8.5, loc="best")
    axis.spines[["top", "right"]].set_visible(False)
