"""Plots of the results, to be read at a width of 830 pixels."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import palette
from benchmarks.photographs.methods import TUNED
from benchmarks.photographs.results import Results, Task, estimate
from starft_hf.utils.plotting import SERIES, SOFT


WIDTH = 9
POOL_COLORS = {"right": SERIES[2], "unrelated": SERIES[5], "plain": SERIES[4], "found": SERIES[3]}
LEVELS = {"zero-shot": palette.ZERO_SHOT, "FLYP": palette.FLYP}
LINES = {
    "FLYP": palette.FLYP,
    TUNED: palette.WISE_FT,
    "kl, right": palette.KL,
    "star, right": palette.STAR,
    "conditional + attribution": palette.ATTRIBUTION,
    "defaults": palette.BOTH,
}
BARS = "bars: \u00b1 standard error over draws"


@palette.page_style()
def draw_methods(results: Results, tasks: Sequence[Task], methods: Sequence[str], path: Path) -> None:
    """Worst group and average against the zero-shot model: a row per method, a panel per task.

    A panel has the methods that were run on all of its draws and models, since means over others cannot be compared.
    """
    complete = {
        task: [name for name in methods if results.by_run(task, name).keys() == results.by_run(task, "FLYP").keys()]
        for task in tasks
    }
    methods = [name for name in methods if any(name in names for names in complete.values())]
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
                if found is not None and method in complete[task]:
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
def draw_correlations(results: Results, path: Path) -> None:
    """Worst group against the zero-shot model by correlation: a panel per number of classes, a line per method.

    A panel is of the runs that all its correlations have.
    """
    panels_of = {
        classes: sorted(task for task in results.tasks if task.kind == "A" and task.classes == classes)
        for classes in (6, 2)
    }
    panels_of = {classes: tasks for classes, tasks in panels_of.items() if len(tasks) > 1}
    if not panels_of:
        return
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    panels = figure.subplots(1, len(panels_of), sharey=True, squeeze=False)[0]
    for panel, (classes, tasks) in zip(panels, panels_of.items(), strict=True):
        panel.axhline(0, color=palette.ZERO_SHOT, lw=1.2, zorder=1)
        common = set.intersection(*(set(results.by_run(task, "FLYP")) for task in tasks))
        for number, (method, color) in enumerate(LINES.items()):
            points = []
            for place, task in enumerate(tasks):
                own, start = results.by_run(task, method), results.by_run(task, "zero-shot")
                found = estimate({run: own[run] - start[run] for run in common & own.keys()})
                if found is not None:
                    points.append((place + 0.05 * (number - len(LINES) / 2), found.mean, found.error or 0))
            if points:
                places, means, errors = zip(*points, strict=True)
                panel.errorbar(places, means, errors, fmt="o-", ms=4, lw=1.4, capsize=2, color=color, label=method)
        panel.set_xticks(range(len(tasks)), [f"{task.correlation:g}" for task in tasks])
        panel.set_xlabel("correlation of background and class in training")
        models, draws = (len({run[part] for run in common}) for part in (0, 1))
        of = f"{models} models, " if models > 1 else ""
        panel.set_title(f"Model A, {classes} classes, {of}{draws} draws")
    panels[0].set_ylabel("worst group against zero-shot, points")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title=BARS)
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
