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
    return [
        Row(*key, tuple(score for score in scores if (score.method, score.interpolated) == key))
        for key in keys
    ]


def row_label(row: Row, alpha: float) -> str:
    """The name of a row in tables and plots."""
    return f"{row.method}, interpolated {alpha:g}" if row.interpolated else row.method


def _cells(rows: Sequence[Row], alpha: float) -> tuple[list[str], list[list[str]]]:
    groups = list(rows[0].scores[0].groups)
    header = ["", "average", "worst group", *groups, "held-out classes"]
    measures: list[Callable[[Score], float]] = [
        lambda score: score.average,
        lambda score: score.worst_group,
        *((lambda score, group=group: score.groups[group]) for group in groups),  # type: ignore[misc]
        lambda score: score.held_out,
    ]
    return header, [[row_label(row, alpha), *(_mean_and_spread(row.of(measure)) for measure in measures)] for row in rows]


def _mean_and_spread(values: np.ndarray) -> str:
    mean = f"{values.mean():.1f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.1f}"


def as_table(rows: Sequence[Row], setting: Setting) -> Table:
    """Accuracy in percent, mean and standard deviation over seeds, for a terminal."""
    header, cells = _cells(rows, setting.alpha)
    table = Table(title=f"Accuracy in % on the {setting.split} split, {_seeds(rows)}", title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row, line in zip(rows, cells, strict=True):
        table.add_row(*line, end_section=row.interpolated or row.method == ZERO_SHOT)
    return table


def as_markdown(rows: Sequence[Row], setting: Setting) -> str:
    """The same table in Markdown."""
    header, cells = _cells(rows, setting.alpha)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_sentence(rows: Sequence[Row], setting: Setting) -> str:
    """What happened, in the numbers of this run."""
    zero_shot, flyp, star = (
        next(row for row in rows if row.method == method and not row.interpolated)
        for method in (ZERO_SHOT, "FLYP", "star")
    )
    gain = star.worst_group - flyp.worst_group
    return (
        f"Plain fine-tuning (FLYP) moved the worst group from {zero_shot.worst_group:.1f}% to "
        f"{flyp.worst_group:.1f}% and the average from {zero_shot.average:.1f}% to {flyp.average:.1f}%; StarFT, with "
        f"the same steps, learning rate and data order, ended at {star.worst_group:.1f}% and {star.average:.1f}%: "
        f"{abs(gain):.1f} points {'better' if gain >= 0 else 'worse'} in the worst group "
        f"({_seeds(rows)})."
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
    return "one seed" if count == 1 else f"mean and standard deviation over {count} seeds"
