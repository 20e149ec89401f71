"""Plots of the results, to be read at a width of 830 pixels."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.photographs.results import Results, Task
from starft_hf.utils.files import file_in_place_of


STYLE = {"font.size": 8, "axes.titlesize": 8.5, "axes.spines.top": False, "axes.spines.right": False}
WIDTH = 8.3
POOL_COLORS = {"right": "C0", "unrelated": "C1", "plain": "0.45", "found": "C2"}


def _save(figure: Figure, path: Path) -> None:
    with file_in_place_of(path) as temporary:
        figure.savefig(temporary, format="png", dpi=200)


@rc_context(STYLE)
def draw_methods(results: Results, tasks: Sequence[Task], methods: Sequence[str], path: Path) -> None:
    """Worst group and average against the zero-shot model: a row per method, a panel per task."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.27 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        panel.axvline(0, color="0.3", lw=0.8)
        for what, color, marker, shift in (("worst", "C3", "o", -0.13), ("average", "C0", "s", 0.13)):
            for row, method in enumerate(methods):
                found = results.difference(task, method, "zero-shot", what=what)
                if found is not None:
                    label = {"worst": "worst group", "average": "average"}[what]
                    panel.errorbar(
                        found.mean,
                        row + shift,
                        xerr=found.error,
                        fmt=marker,
                        ms=4,
                        color=color,
                        capsize=2,
                        label=label,
                    )
        panel.set_title(task.name.replace(", correlation", ",\ncorrelation"))
        panel.grid(axis="x", alpha=0.3)
        panel.set_xlabel("points against zero-shot")
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2)
    _save(figure, path)


@rc_context(STYLE)
def draw_pools(results: Results, tasks: Sequence[Task], path: Path) -> None:
    """Worst group on the test split by pool, a line for each run: what an unrelated pool changes, and what content."""
    pairs = [(task, name) for task in tasks for name in ("kl", "star") if results.level(task, f"{name}, unrelated")]
    if not pairs:
        return
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, (task, name) in zip(panels, pairs, strict=True):
        rows = ["zero-shot", "FLYP", *(f"{name}, {pool}" for pool in POOL_COLORS)]
        rows = [row for row in rows if results.level(task, row)]
        values = [results.by_run(task, row) for row in rows]
        for run in values[0]:
            line = [own.get(run) for own in values]
            panel.plot(range(len(rows)), line, color="0.75", lw=0.7, zorder=1)
        for index, row in enumerate(rows):
            found = results.level(task, row)
            assert found is not None
            color = POOL_COLORS.get(row.partition(", ")[2], "C3")
            panel.errorbar(index, found.mean, found.error, fmt="o", ms=5, capsize=3, color=color, zorder=2)
        panel.set_xticks(range(len(rows)), [row.removeprefix(f"{name}, ") for row in rows], rotation=40, ha="right")
        panel.set_title(f"{name}\n{task.name}".replace(", correlation", ",\ncorrelation"))
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("worst group, %")
    _save(figure, path)
