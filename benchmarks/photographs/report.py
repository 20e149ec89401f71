"""The results for people: tables, plots and what became of the hypotheses, as one page."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from benchmarks.grid_runner import Store
from benchmarks.photographs.grid import TESTED, check_cell
from benchmarks.photographs.models import MODELS
from benchmarks.photographs.plots import draw_correlations, draw_methods, draw_pools
from benchmarks.photographs.results import Estimate, Results, Task
from benchmarks.photographs.stages import STAGES
from benchmarks.photographs.verdicts import verdicts
from starft_hf.utils.files import write_text_atomically


PAGE, METHODS_PLOT, POOLS_PLOT, CORRELATIONS_PLOT = "RESULTS.md", "methods.png", "pools.png", "correlations.png"


# Methods that differ from others by a share of plain captions, or by their length.
VARIANTS, LONG = "defaults, plain", ", long"


def _is_variant(method: str) -> bool:
    return method.startswith(VARIANTS) or method.endswith(LONG)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first column is text and whose others are figures."""
    line = " | ".join(header)
    return [f"| {line} |", f"| --- |{' ---: |' * (len(header) - 1)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _text(found: Estimate | None, signed: bool = False) -> str:
    return "" if found is None else found.signed if signed else str(found)


def task_table(results: Results, task: Task) -> list[str]:
    """Every method on a task: worst group and average of the test, and those of new individuals."""
    rows = []
    for method in results.methods(task):
        level = results.level(task, method)
        assert level is not None
        rows.append(
            [
                method,
                results.weight(task, method),
                str(level),
                _text(results.difference(task, method, "zero-shot"), signed=True) if method != "zero-shot" else "",
                _text(results.level(task, method, what="average")),
                _text(results.level(task, method, TESTED["new"])),
                _text(results.level(task, method, TESTED["new"], "average")),
                _text(results.level(task, method, TESTED["held_out"], "average")),
                f"{level.draws} / {level.runs}",
            ]
        )
    header = [
        "Method",
        "Weight",
        "Worst group",
        "against zero-shot",
        "Average",
        "New: worst group",
        "New: average",
        "Held-out: average",
        "Draws / runs",
    ]
    return markdown_table(header, rows)


def in_order(results: Results) -> list[Task]:
    """The tasks of which something is there, model A first, and many classes before few."""
    return sorted(results.tasks, key=lambda task: (task.kind, -task.classes, task.correlation))


def pools_table(results: Results) -> list[str]:
    """What the right pool gives against others, worst group and average."""
    rows = []
    for task in in_order(results):
        for name in ("kl", "star"):
            for own, other in (("right", "unrelated"), ("right", "plain"), ("unrelated", "plain"), ("found", "right")):
                pair = (f"{name}, {own}", f"{name}, {other}")
                worst = results.difference(task, *pair)
                if worst is not None:
                    average = results.difference(task, *pair, what="average")
                    label = f"{task.name}: {name}, {own} against {other}"
                    rows.append([label, worst.signed, _text(average, signed=True), f"{worst.draws} / {worst.runs}"])
    return markdown_table(["Pools", "Worst group", "Average", "Draws / runs"], rows)


def shares_table(results: Results) -> list[str]:
    """What another share of plain captions gives than that of the defaults, worst group and average."""
    rows = []
    for task in in_order(results):
        for name in (name for name in results.methods(task) if name.startswith(VARIANTS)):
            default = "defaults, long" if name.endswith(LONG) else "defaults"
            worst = results.difference(task, name, default)
            if worst is not None:
                average = results.difference(task, name, default, what="average")
                label = f"{task.name}: {name} against {default}"
                rows.append([label, worst.signed, _text(average, signed=True), f"{worst.draws} / {worst.runs}"])
    return markdown_table(["Shares", "Worst group", "Average", "Draws / runs"], rows)


def cost_lines(store: Store) -> Iterator[str]:
    """How much of the grid is there, and how long all of it takes on one core."""
    total = 0.0
    for kind in ("A", "B"):
        seconds = [
            cell["seconds"][1]
            for key, cell in store.cells.items()
            if "seconds" in cell and key.split(" | ")[1].startswith(kind)
        ]
        stages = [stage for stage in STAGES if stage.kind == kind]
        choices = {cell for stage in stages for cell in stage.choices()}
        # Stages have runs in common, and correlations the model before fine-tuning.
        tests = {
            (stage.classes, None if method == "zero-shot" else stage.correlation, run, method)
            for stage in stages
            for run, method in product(stage.runs, stage.methods)
        }
        count = len(choices) + len(tests)
        if seconds:
            mean = sum(seconds) / len(seconds)
            total += count * mean
            yield (
                f"Model {kind}: {len(seconds)} of {count} cells, {mean:.0f} CPU seconds each, "
                f"{sum(seconds) / 3600:.1f} core-hours so far."
            )
    yield f"The full grid takes about {total / 3600:.0f} core-hours."


def checks_table(store: Store) -> list[str]:
    """What the models can do before they are fine-tuned, those that were checked."""
    found = {model: store[check_cell(model)] for model in MODELS if check_cell(model) in store}
    columns = list(next(iter(found.values()), {}))
    rows = [[model, *(f"{accuracies[column]:.1f}" for column in columns)] for model, accuracies in found.items()]
    return markdown_table(["Model", *(f"{column} cut-outs" for column in columns)], rows)


def page(results: Results, store: Store) -> str:
    """The page, in markdown."""
    lines = [
        "# Photographs: results",
        "",
        "By `python -m benchmarks.photographs`, from `results.json`. Photographed cut-outs on photographs; a draw",
        "decides which cut-outs and photographs train, validate and test. Figures are in %, means over draws (of the",
        "mean over a draw's models) ± their standard errors over draws; differences are on the same draws and models.",
        "",
        "| Draws / runs | draws, and pairs of a draw and a model |",
        "| --- | --- |",
        "| Weight | chosen on validation, on two draws that are not tested; of WiSE-FT that of the fine-tuned model |",
        "| Test | cut-outs that pre-training saw and fine-tuning did not, photographs that neither did |",
        "| New | individuals that pre-training did not see either |",
        "| Held-out | the six classes that are not fine-tuned, seen in pre-training |",
        "",
        *cost_lines(store),
        "",
        "Accuracy before fine-tuning in %, on clean images of the classes that are fine-tuned, the others, and all:",
        "",
        *checks_table(store),
        "",
        "Hypotheses were written down before the grid was run, in hypotheses.md.",
        "",
        f"![Worst group and average against zero-shot]({METHODS_PLOT})",
        "",
        f"![Worst group by correlation in training]({CORRELATIONS_PLOT})",
        "",
        f"![Worst group by pool]({POOLS_PLOT})",
        "",
        "## Hypotheses",
        "",
        *markdown_table(["Hypothesis", "Found", "Outcome"], verdicts(results)),
        "",
        "## Pools",
        "",
        *pools_table(results),
        "",
        "## Plain captions",
        "",
        "The defaults have a quarter of plain captions, `{}.`, with up to four classes. Long runs are",
        "3,000 steps at the default learning rate of 1e-5, 400 passes over the images.",
        "",
        *shares_table(results),
        "",
    ]
    for task in in_order(results):
        lines += [f"## {task.name}", "", *task_table(results, task), ""]
    return "\n".join(lines)


def write_report(store: Store, folder: Path) -> None:
    """The page and its plots."""
    results = Results(store)
    write_text_atomically(folder / PAGE, page(results, store))
    drawn = [task for task in results.tasks if results.level(task, "FLYP")]
    if drawn:
        names = (name for task in drawn for name in results.methods(task))
        shown = dict.fromkeys(name for name in names if name != "zero-shot" and not _is_variant(name))
        first, others = ([task for task in drawn if (task.kind == "A") == is_first] for is_first in (True, False))
        draw_methods(results, [*first[:3], *others[:1]], list(shown), folder / METHODS_PLOT)
        draw_correlations(results, folder / CORRELATIONS_PLOT)
        draw_pools(results, drawn[:3], folder / POOLS_PLOT)
