"""What a tuning has found: a table of all candidates, what was chosen, and how it does on test data."""

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from starft_hf.evaluation.results import AnyResult, result_from_dict
from starft_hf.report import RobustnessReport, Run
from starft_hf.report.data import as_plain, nan_where_none
from starft_hf.report.plots import WeightPoint, draw_weights
from starft_hf.report.table import Cell, Table
from starft_hf.training.methods import ZERO_SHOT
from starft_hf.training.tuning.selection import AVERAGE, WORDS
from starft_hf.utils.files import write_bytes_atomically, write_text_atomically
from starft_hf.utils.plotting import as_png, drawing
from starft_hf.utils.text import markdown, percent


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TuningRow:
    """A candidate, with the best of its models on the validation set.

    Attributes:
        method: "zero-shot", or a method that `compare` knows.
        reg_weight: weight of its regularizer; None without one.
        alpha: weight of the fine-tuned model in the best interpolation with the zero-shot one, as in WiSE-FT.
        average: accuracy.
        worst_group: accuracy of the worst of the groups, pseudo-groups or classes that the choice is by.
        trained: share of the steps after which it was measured, and where it ended unless that is 1.
        diverged: why it ended with NaN or infinity; None if it did not.
    """

    method: str
    reg_weight: float | None
    alpha: float | None
    average: float | None
    worst_group: float | None
    trained: float
    diverged: str | None = None

    @property
    def label(self) -> str:
        """The name of the candidate, such as "kl@30"."""
        return self.method if self.reg_weight is None else f"{self.method}@{self.reg_weight:g}"


@dataclass(frozen=True)
class TuningResult:
    """What was chosen, and among what.

    Attributes:
        best: the row of what was chosen.
        table: a row for every candidate, the zero-shot model first.
        select_by: the measure of the choice: "worst_group", "pseudo_groups", "worst_class" or "average".
        models: how many models the best was chosen from: the zero-shot one, and those of all alphas of finished runs.
        validation: name of the set that was chosen on.
        test: results by name of the test set, and of the model: "zero-shot" and what was chosen.
        seed: of the runs.
        output_dir: folder of the model that was chosen.
    """

    best: TuningRow
    table: Sequence[TuningRow]
    select_by: str
    models: int
    validation: str
    seed: int
    output_dir: str
    test: Mapping[str, Mapping[str, AnyResult]] = field(default_factory=dict)

    @property
    def report(self) -> RobustnessReport | None:
        """The zero-shot model and what was chosen on the test sets; None without test sets."""
        if not self.test:
            return None
        runs = []
        for label in next(iter(self.test.values())):
            results = {name: found[label] for name, found in self.test.items()}
            alpha = self.best.alpha if label != ZERO_SHOT and self.best.alpha != 1 else None
            runs.append(Run(label, self.seed, results, interpolated=alpha))
        return RobustnessReport(runs, title="What tuning has chosen, on test data")

    @property
    def sentences(self) -> list[str]:
        """What was chosen, and what its figures are worth, in plain text."""
        start, best, by = self.table[0], self.best, f"{WORDS[self.select_by]} on {self.validation}"
        if best.method == ZERO_SHOT:
            found = [f"No fine-tuned model was better than the zero-shot one by {by}, so that one was chosen."]
        else:
            weight = "" if best.reg_weight is None else f" with weight {best.reg_weight:g}"
            mixed = "" if best.alpha == 1 else f", interpolated at alpha {best.alpha:g}"
            was, now = (row.average if self.select_by == AVERAGE else row.worst_group for row in (start, best))
            found = [
                f"Chosen by {by}: {best.method}{weight}{mixed}, with {percent(now or 0.0)}%; zero-shot "
                f"{percent(was or 0.0)}%."
            ]
        found.append(
            f"Figures on {self.validation} are those of the best of {self.models} models on it, so they are optimistic"
            + ("." if self.test else "; only a test set shows how good it is.")
        )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; "best" is the method, its weight and its alpha."""
        names = ("method", "reg_weight", "alpha")
        return {
            "best": {name: getattr(self.best, name) for name in names},
            "table": [asdict(row) for row in self.table],
            "select_by": self.select_by,
            "models": self.models,
            "validation": self.validation,
            "test": {name: {label: one.as_dict() for label, one in part.items()} for name, part in self.test.items()},
            "seed": self.seed,
            "output_dir": self.output_dir,
        }

    @property
    def _lines(self) -> Table:
        worst = "worst class" if self.select_by == "worst_class" else "worst group"
        headings = ["candidate", "alpha", "average", worst, "steps", ""]
        lines: list[list[str | Cell]] = []
        for row in self.table:
            figures = [Cell() if value is None else Cell(percent(value)) for value in (row.average, row.worst_group)]
            note = "diverged" if row.diverged else "chosen" if row == self.best else ""
            alpha = "" if row.alpha is None else f"{row.alpha:g}"
            lines.append([row.label, alpha, *figures, f"{row.trained:.0%}", note])
        return Table(headings, lines)

    def as_markdown(self) -> str:
        """The sentences, the table, and the results on test data in Markdown."""
        parts = ["# Tuning", *map(markdown, self.sentences), self._lines.as_markdown()]
        parts.append(
            "In %, each candidate at its best alpha. Runs pause after a quarter and a half of their steps, where the "
            "worse half ends; those with 100% are finished, and only they and the zero-shot model can be chosen."
        )
        text = "\n\n".join(parts) + "\n"
        return text if self.report is None else f"{text}\n{self.report.as_markdown()}"

    # What a notebook shows.
    _repr_markdown_ = as_markdown

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """What `rich.print` shows."""
        yield self._lines.as_rich(f"Accuracy in % on {self.validation}")
        for sentence in self.sentences:
            yield Text(sentence)
        if self.report is not None:
            yield self.report

    @drawing()
    def figure(self) -> "Figure":
        """Worst group and average against the weight, as a Matplotlib figure."""
        models: dict[str, list[WeightPoint]] = {}
        for row in self.table:
            if row.average is not None and row.worst_group is not None:
                point = WeightPoint(row.reg_weight, row.average, row.worst_group, row.trained in (0.0, 1.0))
                models.setdefault(row.method, []).append(point)
        return draw_weights(models, WORDS[self.select_by].removeprefix("the ") if self.select_by != AVERAGE else None)

    def save(self, folder: Path) -> None:
        """Write tuning.md and, where matplotlib is installed, tuning.png; with test sets also the report of them."""
        write_text_atomically(folder / "tuning.md", self.as_markdown())
        drawn = importlib.util.find_spec("matplotlib") is not None
        if drawn:
            write_bytes_atomically(folder / "tuning.png", as_png(self.figure()))
        if self.report is not None and drawn and importlib.util.find_spec("jinja2") is not None:
            self.report.save(folder, overwrite=True)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TuningResult":
        """The inverse of `as_dict`, also of what JSON keeps of it."""
        plain = json.loads(json.dumps(as_plain(content["test"])), object_hook=nan_where_none)
        test = {name: {label: result_from_dict(one) for label, one in part.items()} for name, part in plain.items()}
        table = [TuningRow(**row) for row in content["table"]]
        best = content["best"]
        chosen = next(row for row in table if (row.method, row.reg_weight) == (best["method"], best["reg_weight"]))
        return cls(**{**content, "best": chosen, "table": table, "test": test})
