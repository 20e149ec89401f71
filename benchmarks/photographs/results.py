"""What was found: figures of the finished tests, and differences between methods on the same runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.grid_runner import Store
from benchmarks.photographs.grid import chosen, test_cell
from benchmarks.photographs.methods import METHODS, TUNED
from benchmarks.photographs.stages import STAGES, Stage


Run = tuple[str, int]
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, order=True)
class Task:
    """What a table is of: a kind of model, a number of classes and a correlation."""

    kind: str
    classes: int
    correlation: float

    @property
    def name(self) -> str:
        """For people."""
        return f"Model {self.kind}, {self.classes} classes, correlation {self.correlation:g}"


@dataclass(frozen=True)
class Estimate:
    """A mean over draws and its standard error, in percentage points.

    Attributes:
        mean: of the means of each draw, over its models.
        error: standard deviation of the draws' means over the root of their number; None of a single draw.
        draws: how many.
        runs: how many pairs of a draw and a model.
    """

    mean: float
    error: float | None
    draws: int
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.error is None else f"{self.mean:.1f} ± {self.error:.1f}"

    @property
    def signed(self) -> str:
        """With its sign, for differences."""
        return f"{'+' if self.mean > 0 else ''}{self}".replace("-", MINUS)


class Results:
    """The tests of the stages as far as they have got: of a stage, those runs of which every method is there."""

    def __init__(self, store: Store, stages: Sequence[Stage] = STAGES):
        self.store = store
        # By task and method: the figures of every run.
        self._found: dict[tuple[Task, str], dict[Run, dict]] = {}
        for stage in stages:
            if all(cell in store for cell in stage.choices()):
                self._read(stage)

    def _read(self, stage: Stage) -> None:
        task = Task(stage.kind, stage.classes, stage.correlation)
        for run in stage.runs:
            cells = [test_cell(self.store, run, stage.classes, stage.correlation, name) for name in stage.methods]
            if not all(cell in self.store for cell in cells):
                continue
            for name, cell in zip(stage.methods, cells, strict=True):
                result = self.store[cell]
                self._found.setdefault((task, name), {})[run] = result
                if "interpolated" in result:
                    self._found.setdefault((task, TUNED), {})[run] = result["interpolated"]

    @property
    def tasks(self) -> list[Task]:
        """Those of which something is there, in the order of the stages."""
        return list(dict.fromkeys(task for task, _ in self._found))

    def methods(self, task: Task) -> list[str]:
        """Those that were tested on a task."""
        names = list(METHODS)
        names.insert(names.index("FLYP") + 1, TUNED)
        return [name for name in names if (task, name) in self._found]

    def weight(self, task: Task, method: str) -> str:
        """The weight of a method for people: chosen, "auto" or, without one, nothing."""
        own = METHODS["FLYP" if method == TUNED else method]
        if "reg_weight" in own.settings or method == "FLYP":
            return str(own.settings.get("reg_weight", ""))
        found = chosen(self.store, task.kind, task.classes, "FLYP" if method == TUNED else method)
        return "" if found is None else f"{found:g}"

    def by_run(self, task: Task, method: str, split: str = "test", what: str = "worst") -> dict[Run, float]:
        """A figure of every run of a method on a task, in %; without those that have no such split."""
        found = self._found.get((task, method), {})
        return {run: 100 * result[split][what] for run, result in found.items() if split in result}

    def level(self, task: Task, method: str, split: str = "test", what: str = "worst") -> Estimate | None:
        """The figure of a method, or None if there is none."""
        return estimate(self.by_run(task, method, split, what))

    def difference(
        self, task: Task, method: str, other: str, split: str = "test", what: str = "worst"
    ) -> Estimate | None:
        """How much higher a method's figure is than another's on the same runs, or None if there are none."""
        own, theirs = (self.by_run(task, name, split, what) for name in (method, other))
        return estimate({run: own[run] - theirs[run] for run in own.keys() & theirs.keys()})


def estimate(values: dict[Run, float]) -> Estimate | None:
    """The mean and its standard error over draws, of a figure of every pair of a model and a draw."""
    by_draw: dict[int, list[float]] = {}
    for (_, draw), value in values.items():
        by_draw.setdefault(draw, []).append(value)
    if not by_draw:
        return None
    means = [statistics.fmean(own) for own in by_draw.values()]
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else None
    return Estimate(statistics.fmean(means), error, len(means), len(values))
