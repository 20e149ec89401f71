"""What the demo's runs say: tables and one sentence."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from starft_hf.demo.experiment import HELD_OUT, METHODS, Setting
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.report import Run
from starft_hf.training.comparison import ZERO_SHOT


@dataclass(frozen=True)
class Row:
    """The runs of a method, one per seed.

    Attributes:
        method: "zero-shot" or one of `METHODS`.
        interpolated: whether the weights are on the way to the zero-shot model's.
        split: the split that is scored.
        runs: by seed.
    """

    method: str
    interpolated: bool
    split: str
    runs: tuple[Run, ...]

    @property
    def results(self) -> list[EvaluationResult]:
        """What every seed gave on the scored split."""
        return [run.results[self.split] for run in self.runs]

    @property
    def worst_groups(self) -> np.ndarray:
        """Accuracy of every seed's worst group, in percent."""
        return np.array([100 * result.worst_group_accuracy for result in self.results])

    @property
    def averages(self) -> np.ndarray:
        """Every seed's accuracy, in percent."""
        return np.array([100 * result.accuracy for result in self.results])

    @property
    def worst_group(self) -> float:
        """The mean of `worst_groups`."""
        return float(self.worst_groups.mean())

    @property
    def average(self) -> float:
        """The mean of `averages`."""
        return float(self.averages.mean())

    @property
    def held_out(self) -> np.ndarray:
        """Every seed's accuracy on the classes that fine-tuning never sees, in percent."""
        return np.array([100 * run.results[HELD_OUT].accuracy for run in self.runs])

    def group(self, name: str) -> np.ndarray:
        """Every seed's accuracy in a group, in percent."""
        return np.array([100 * result.group_accuracies[name] for result in self.results])

    @property
    def groups(self) -> list[str]:
        """The names of the groups."""
        return sorted(self.results[0].group_accuracies)


def as_rows(runs: Sequence[Run], split: str) -> list[Row]:
    """Runs by method, plain before interpolated, zero-shot first."""
    keys = [(ZERO_SHOT, False), *((method, interpolated) for method in METHODS for interpolated in (False, True))]
    return [
        Row(*key, split, tuple(run for run in runs if (run.method, run.interpolated is not None) == key))
        for key in keys
    ]


def row_label(row: Row, alpha: float) -> str:
    """The name of a row in tables and plots."""
    return f"{row.method} + WiSE-FT {alpha:g}" if row.interpolated else row.method


# What a column of a table shows of a row: percentages, one per seed.
Measure = Callable[[Row], np.ndarray]


def _measures(rows: Sequence[Row]) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """What a table's columns show: of the whole, and group by group."""
    overall: dict[str, Measure] = {
        "average": lambda row: row.averages,
        "worst group": lambda row: row.worst_groups,
        "held-out classes": lambda row: row.held_out,
    }
    return overall, {group: partial(Row.group, name=group) for group in rows[0].groups}


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
        cells = [_mean_and_spread(measure(row)) for measure in measures.values()]
        table.add_row(row_label(row, setting.alpha), *cells, end_section=row.interpolated or row.method == ZERO_SHOT)
    return table


def as_markdown(rows: Sequence[Row], setting: Setting) -> str:
    """The same as one table in Markdown."""
    overall, groups = _measures(rows)
    measures = {**overall, **groups}
    lines = [["", *measures], ["---", *["---:"] * len(measures)]]
    for row in rows:
        lines.append(
            [row_label(row, setting.alpha), *(_mean_and_spread(measure(row)) for measure in measures.values())]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_sentence(rows: Sequence[Row], setting: Setting) -> str:
    """What happened, in the numbers of this run."""
    zero_shot, flyp, star = (
        next(row for row in rows if row.method == method and not row.interpolated)
        for method in (ZERO_SHOT, "FLYP", "star")
    )
    gain = star.worst_group - flyp.worst_group
    seeds = len(star.runs)
    return (
        f"Plain fine-tuning (FLYP) moved the worst group from {zero_shot.worst_group:.1f}% to "
        f"{flyp.worst_group:.1f}% and the average from {zero_shot.average:.1f}% to {flyp.average:.1f}%; StarFT, with "
        f"the same steps, learning rate and data order, ended at {star.worst_group:.1f}% and {star.average:.1f}%: "
        f"{abs(gain):.1f} points {'better' if gain >= 0 else 'worse'} in the worst group"
        f"{f' (means over {seeds} seeds)' if seeds > 1 else ''}."
    )


def setting_as_json(setting: Setting, versions: dict[str, str], seconds: float) -> str:
    """What the runs were made with, and how long they took."""
    content: dict[str, Any] = {
        "setting": {**asdict(setting), "model": setting.model if setting.model != Setting().model else "shipped"},
        "versions": versions,
        "seconds": round(seconds, 1),
    }
    return json.dumps(content, indent=1) + "\n"


def _seeds(rows: Sequence[Row]) -> str:
    count = len(rows[-1].runs)
    return "one seed" if count == 1 else f"mean ± standard deviation, {count} seeds"
