"""The results of `benchmarks.defaults` for people: every cell of the grid, what fails, and the forms."""

from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev

from benchmarks import beyond
from benchmarks.beyond import FOLDER
from benchmarks.beyond_report import tested, values
from benchmarks.defaults import (
    CENTER,
    CLASSES,
    CORRELATIONS,
    FEW,
    FORMS,
    LONG,
    MANY,
    NEAREST,
    RATES,
    Cell,
    forms,
    grid,
    long_runs,
    models,
)
from benchmarks.grid_runner import Store
from starft_hf.objectives.regularizers import get_regularizer
from starft_hf.utils.files import write_text_atomically


PAGE = FOLDER / "DEFAULTS.md"
NOTES = FOLDER / "defaults_notes.md"

SHOWN = ("zero-shot", "FLYP", "default")

# In points: what counts as a loss of plain fine-tuning, and what the defaults may lose.
LOSS, ALLOWED = 5, 2


def finished(store: Store, cells: Sequence[Cell], methods: Sequence[str]) -> list[list[Cell]]:
    """The cells that were run with all of the methods, those that differ by their seed only together."""
    found: dict[Cell, list[Cell]] = {}
    for cell in dict.fromkeys(cell.by(methods[-1]) for cell in cells if cell.method != "zero-shot"):
        if all(other in store for other in (cell.start, *(cell.by(method) for method in methods))):
            found.setdefault(cell.by(methods[-1], seed=0), []).append(cell)
    return list(found.values())


def mean(store: Store, cells: Sequence[Cell], method: str, what: str) -> float:
    """A figure in %, mean over cells, of a method or of the zero-shot models they start from."""
    chosen = [cell.start if method == "zero-shot" else cell.by(method) for cell in cells]
    return 100 * fmean(store[cell][what] for cell in chosen)


def error(store: Store, cells: Sequence[Cell], method: str, what: str) -> str:
    """The standard error of how much less the defaults have of a figure than a method, over seeds; empty of one."""
    if len(cells) < 2:
        return ""
    lost = [mean(store, [cell], method, what) - mean(store, [cell], SHOWN[2], what) for cell in cells]
    return f" ± {stdev(lost) / len(lost) ** 0.5:.1f}"


def verdict(
    correlation: float, worst: Sequence[float], average: Sequence[float], errors: tuple[str, str] = ("", "")
) -> str:
    """What the defaults lose that they may not, of figures in % of zero-shot, FLYP and them; empty if they hold."""
    lost, gap = worst[0] - worst[2], average[1] - average[2]
    if worst[0] - worst[1] > LOSS and lost > ALLOWED:
        return f"{lost:.1f}{errors[0]} of the worst group"
    return f"{gap:.1f}{errors[1]} of FLYP's average" if correlation == CORRELATIONS[0] and gap > ALLOWED else ""


def row(
    correlation: float, worst: Sequence[float], average: Sequence[float], errors: tuple[str, str] = ("", "")
) -> str:
    """Cells of a table: worst group / average of zero-shot, FLYP and the defaults, and what fails."""
    shown = [f"{one:.1f} / {other:.1f}" for one, other in zip(worst, average, strict=True)]
    return " | ".join([*shown, verdict(correlation, worst, average, errors)])


def grid_table(store: Store) -> list[str]:
    """Every cell of the grid, means over its seeds."""
    lines = [
        "| Model | Classes | Correlation | Rate, steps, batch | Seeds | zero-shot | FLYP | defaults | Fails by |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for cells in finished(store, list(grid()), ("FLYP", "default")):
        first = cells[0]
        run = f"{first.learning_rate:g}, {first.steps}, {first.batch}"
        worst, average = ([mean(store, cells, method, what) for method in SHOWN] for what in ("worst", "average"))
        errors = (error(store, cells, SHOWN[0], "worst"), error(store, cells, SHOWN[1], "average"))
        task = f"{first.base} | {first.classes} | {first.correlation:g} | {run} | {len(cells)}"
        lines.append(f"| {task} | {row(first.correlation, worst, average, errors)} |")
    return lines


def forms_table(store: Store, correlation: float) -> list[str]:
    """Worst group minus that of the zero-shot model / average, by form and number of classes, on validation."""
    lines = [
        f"| Form | {' | '.join(f'{classes} classes' for classes in CLASSES)} | least |",
        f"| --- |{' ---: |' * (len(CLASSES) + 1)}",
    ]
    every = [cell for cell in forms() if cell.correlation == correlation]
    for form in FORMS:
        cells, least = [], []
        for classes in CLASSES:
            own = finished(store, [cell for cell in every if cell.classes == classes], [form])
            if not own:
                cells.append("")
                continue
            gain = mean(store, own[0], form, "worst") - mean(store, own[0], "zero-shot", "worst")
            least.append(gain)
            cells.append(f"{gain:+.1f} / {mean(store, own[0], form, 'average'):.1f}")
        if least:
            lines.append(f"| {form} | {' | '.join(cells)} | {min(least):+.1f} |")
    return lines


def models_table(store: Store) -> list[str]:
    """Worst group minus that of the zero-shot model / average, over all pre-trained models and seeds."""
    lines = [
        f"| Form | Correlation | {' | '.join(f'{classes} classes' for classes in FEW)} |",
        f"| --- | ---: |{' ---: |' * len(FEW)}",
    ]
    for form, correlation in product(("default", NEAREST), CORRELATIONS[2:]):
        shown = []
        for classes in FEW:
            own = [cell for cell in models() if (cell.classes, cell.correlation) == (classes, correlation)]
            cells = [cell for same in finished(store, own, ["default", form]) for cell in same]
            gain = mean(store, cells, form, "worst") - mean(store, cells, "zero-shot", "worst")
            shown.append(f"{gain:+.1f} / {mean(store, cells, form, 'average'):.1f}")
        lines.append(f"| {form} | {correlation:g} | {' | '.join(shown)} |")
    return lines


def long_table(store: Store) -> list[str]:
    """What long runs lose of the zero-shot worst group, and end at on average."""
    lines = [
        "| Method | Classes | zero-shot | fine-tuned | against zero-shot |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for cell in long_runs():
        for method in ("FLYP", *LONG):
            if not finished(store, [cell], [method]):
                continue
            start, found = (
                [mean(store, [cell], name, what) for what in ("worst", "average")] for name in ("zero-shot", method)
            )
            both = (f"{worst:.1f} / {average:.1f}" for worst, average in (start, found))
            lines.append(f"| {method} | {cell.classes} | {' | '.join(both)} | {found[0] - start[0]:+.1f} |")
    return lines


def stored_table() -> list[str]:
    """The runs of `benchmarks.beyond` whose regularizer and weight are the defaults; means over models and seeds."""
    store = Store(beyond.RESULTS)
    entries = tested(store)
    lines = [
        "| Classes | Correlation | Regularizer, weight | Runs | zero-shot | FLYP | StarFT | Fails by |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for classes, name in product(beyond.CLASSES, ("kl, auto", "star")):
        default, weight = get_regularizer("auto", classes), beyond.auto(classes, "kl")
        assert default is not None
        # With fewer classes, the defaults have plain captions, which these runs lack.
        is_default = (
            classes >= MANY
            and name.startswith(default.name)
            and (name == "kl, auto" or beyond.chosen(store, classes, name) == weight)
        )
        for correlation in CORRELATIONS if is_default else ():
            runs = [values(entries, classes, correlation, method, "worst") for method in ("zero-shot", "FLYP", name)]
            averages = [
                values(entries, classes, correlation, method, "average") for method in ("zero-shot", "FLYP", name)
            ]
            worst, average = ([fmean(found) for found in part] for part in (runs, averages))
            task = f"{classes} | {correlation:g} | {default.name}, {weight:g} | {len(runs[2])}"
            lines.append(f"| {task} | {row(correlation, worst, average)} |")
    return lines


def page(store: Store) -> list[str]:
    """The page, line by line."""
    rows = [*grid_table(store)[2:], *stored_table()[2:]]
    failing = [line for line in rows if not line.endswith("|  |")]
    return [
        "# The defaults",
        "",
        "By `python -m benchmarks.defaults`, on the demo's world: `StarFTConfig` as it is, with its warm-up, clipping",
        "and random crops, on 480 training images; scored on 200 images of every group. At learning rates below",
        f"{CENTER[0]:g}, runs are longer, as the table says: in 100 steps of 1e-5 this model does not change.",
        "",
        f"A cell fails if plain fine-tuning (FLYP) loses more than {LOSS} points of the zero-shot worst group and the "
        f"defaults lose more than {ALLOWED},",
        f"or if nothing is spurious (correlation 0.5) and they end more than {ALLOWED} points below FLYP's average. "
        f"{len(failing)} of {len(rows)} cells fail.",
        "",
        "Test split, worst group / average in %, means over seeds of the training images and of the run; ± is the",
        "standard error of the difference:",
        "",
        *grid_table(store),
        "",
        "The runs of docs/beyond.md with the regularizer and the weight that are the defaults, without warm-up,",
        "clipping and crops; means over 3 pre-trained models and 5 seeds:",
        "",
        *stored_table(),
        "",
        "## Long runs at a low rate",
        "",
        f"{RATES[2][1]:,} steps at {RATES[2][0]:g} with a correlation of 0.95 in training; one seed, worst group /",
        "average in %:",
        "",
        *long_table(store),
        "",
        "## What forgives a wrong weight",
        "",
        "On validation, with seeds that are not tested: the worst group minus that of the zero-shot model / average,",
        'in points. "default" is "star" from four classes on, else "kl", up to four with a quarter of plain captions,',
        '`{}.`, and with the weight that "auto" stands for. "plain 0.5" has that share of them; all others without a',
        'share have none. "x 2" has twice the weight; "term 1" has the divergence on plain captions as a term of its',
        'own, as heavy, and "above 0.05" only what of it is above 0.05 nats.',
        *(
            line
            for correlation in reversed(CORRELATIONS)
            if len(rows_of_forms := forms_table(store, correlation)) > 2
            for line in ("", f"Correlation {correlation:g}:", "", *rows_of_forms)
        ),
        "",
        f"The defaults and {NEAREST!r}, means over five models (those pre-trained at logit scales of 50 and 100 among",
        "them) with two seeds each:",
        "",
        *models_table(store),
        "",
        *NOTES.read_text(encoding="utf-8").splitlines(),
    ]


def write_report(store: Store) -> None:
    """Write the page."""
    write_text_atomically(PAGE, "\n".join(page(store)) + "\n")
