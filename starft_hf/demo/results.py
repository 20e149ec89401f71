"""What the demo's scores say: a table, one sentence and a file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from starft_hf.demo.experiment import METHODS, ZERO_SHOT, Score, Setting


@dataclass(frozen=True)
class Row:
    """The scores of a method over its seeds."""

    method: str
    interpolated: bool
    scores: tuple[Score, ...]

    def of(self, measure: Callable[[Score], float]) -> np.ndarray:
        """A measure of every seed, in percent."""
        return np.array([100 * measure(score) for score in self.scores])

    @property
    def worst_group(self) -> float:
        """Mean accuracy of the worst group, in percent."""
        return float(self.of(lambda score: score.worst_group).mean())

    @property
    def average(self) -> float:
        """Mean accuracy, in percent."""
        return float(self.of(lambda score: score.average).mean())


def as_rows(scores: Sequence[Score]) -> list[Row]:
    """Scores by method, plain before interpolated, zero-shot first."""
    keys = [(ZERO_SHOT, False), *((method, interpolated) for method in METHODS for interpolated in (False, True))]
    return [Row(*key, tuple(score for score in scores if (score.method, score.interpolated) == key)) for key in keys]


def row_label(row: Row, alpha: float) -> str:
    """The name of a row in tables and plots."""
    return f"{row.method} + WiSE-FT {alpha:g}" if row.interpolated else row.method


Measure = Callable[[Score], float]


def _measures(rows: Sequence[Row]) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """What a table's columns show: of the whole, and group by group."""
    overall: dict[str, Measure] = {
        "average": lambda score: score.average,
        "worst group": lambda score: score.worst_group,
        "held-out classes": lambda score: score.held_out,
    }
    return overall, {group: _group_accuracy(group) for group in rows[0].scores[0].groups}


def _group_accuracy(group: str) -> Measure:
    return lambda score: score.groups[group]


def _mean_and_spread(values: np.ndarray) -> str:
    mean = f"{values.mean():.1f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.1f}"


# Columns that one table can hold without breaking numbers in two.
_WIDTH_OF_ONE_TABLE = 118


def as_tables(rows: Sequence[Row], setting: Setting, width: int) -> list[Table]:
    """Accuracy in percent, mean and standard deviation over seeds, for a terminal.

    Args:
        rows: from `as_rows`.
        setting: of the run.
        width: of the terminal, in columns; a narrow one gets the groups in a second table.
    """
    overall, groups = _measures(rows)
    title = f"Accuracy in %, {setting.split} split, {_seeds(rows)}"
    if width >= _WIDTH_OF_ONE_TABLE:
        return [_table(title, rows, setting, {**overall, **groups})]
    return [_table(title, rows, setting, overall), _table("The same, group by group", rows, setting, groups)]


def _table(title: str, rows: Sequence[Row], setting: Setting, measures: dict[str, Measure]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in measures:
        table.add_column(name, justify="right", min_width=11, max_width=11)
    for row in rows:
        cells = [_mean_and_spread(row.of(measure)) for measure in measures.values()]
        table.add_row(row_label(row, setting.alpha), *cells, end_section=row.interpolated or row.method == ZERO_SHOT)
    return table


def as_markdown(rows: Sequence[Row], setting: Setting) -> str:
    """The same as one table in Markdown."""
    overall, groups = _measures(rows)
    measures = {**overall, **groups}
    lines = [["", *measures], ["---", *["---:"] * len(measures)]]
    for row in rows:
        lines.append(
            [row_label(row, setting.alpha), *(_mean_and_spread(row.of(measure)) for measure in measures.values())]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_sentence(rows: Sequence[Row], setting: Setting) -> str:
    """What happened, in the numbers of this run."""
    zero_shot, flyp, star = (
        next(row for row in rows if row.method == method and not row.interpolated)
        for method in (ZERO_SHOT, "FLYP", "star")
    )
    gain = star.worst_group - flyp.worst_group
    seeds = len(star.scores)
    return (
        f"Plain fine-tuning (FLYP) moved the worst group from {zero_shot.worst_group:.1f}% to "
        f"{flyp.worst_group:.1f}% and the average from {zero_shot.average:.1f}% to {flyp.average:.1f}%; StarFT, with "
        f"the same steps, learning rate and data order, ended at {star.worst_group:.1f}% and {star.average:.1f}%: "
        f"{abs(gain):.1f} points {'better' if gain >= 0 else 'worse'} in the worst group"
        f"{f' (means over {seeds} seeds)' if seeds > 1 else ''}."
    )


def as_json(scores: Sequence[Score], setting: Setting, versions: dict[str, str], seconds: float) -> str:
    """Everything about the run, for machines. Accuracies are shares."""
    content: dict[str, Any] = {
        "setting": {**asdict(setting), "model": setting.model if setting.model != Setting().model else "shipped"},
        "versions": versions,
        "seconds": round(seconds, 1),
        "scores": [asdict(score) for score in scores],
    }
    return json.dumps(content, indent=1) + "\n"


def _seeds(rows: Sequence[Row]) -> str:
    count = len(rows[-1].scores)
    return "one seed" if count == 1 else f"mean ± standard deviation, {count} seeds"
