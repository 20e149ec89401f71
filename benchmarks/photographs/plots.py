"""Plots of the results, to be read at a width of 830 pixels."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import palette
from benchmarks.photographs.results import Results, Task
from starft_hf.utils.plotting import SERIES, SOFT


WIDTH = 9
POOL_COLORS = {"right": SERIES[2], "unrelated": SERIES[5], "plain": SERIES[4], "found": SERIES[3]}
LEVELS = {"zero-shot": palette.ZERO_SHOT, "FLYP": palette.FLYP}
BARS = "bars: \u00b1 standard error over draws"


@palette.page_style()
def draw_methods(results: Results, tasks: Sequence[Task], methods: Sequence[str], path: Path) -> None:
    """Worst group and average against the zero-shot model: a row per method, a panel per task."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.27 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        panel.axvline(0, color=SOFT, lw=0.8)
        for what, color, marker, shift in (
            ("worst", palette.WORST, "o", -0.13),
            ("average", palette.AVERAGE, "s", 0.13),
        ):
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
        panel.set_xlabel("points against zero-shot")
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, title=BARS)
    palette.save(figure, path)


@palette.page_style()
def draw_pools(results: Results, tasks: Sequence[Task], path: Path) -> None:
    """Worst group on the test split by pool, a line for each run: what an unrelated pool changes, and what content."""
    pairs = [(task, name) for task in tasks for name in ("kl", "star") if results.level(task, f"{name}, unrelated")]
    if not pairs:
        return
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for panel, (task, name) in zip(panels, pairs, strict=True):
        rows = ["zero-shot", "FLYP", *(f"{name}, {pool}" for pool in POOL_COLORS)]
        rows = [row for row in rows if results.level(task, row)]
        values = [results.by_run(task, row) for row in rows]
        for run in values[0]:
            line = [own.get(run) for own in values]
            panel.plot(range(len(rows)), line, color=SERIES[0], alpha=0.45, lw=0.8, zorder=1)
        for index, row in enumerate(rows):
            found = results.level(task, row)
            assert found is not None
            color = LEVELS.get(row) or POOL_COLORS[row.partition(", ")[2]]
            panel.errorbar(index, found.mean, found.error, fmt="o", ms=5, capsize=3, color=color, zorder=2)
        panel.set_xticks(range(len(rows)), [row.removeprefix(f"{name}, ") for row in rows], rotation=40, ha="right")
        panel.set_title(f"{name}, {task.name}".replace(", ", "\n"))
    panels[0].set_ylabel("worst group, %")
    figure.supxlabel(f"{BARS}; thin lines: one run each", fontsize=9)
    palette.save(figure, path)
