"""What the grid consists of, in the order in which it is run: what decides most comes first.

A stage is a task with some methods, on pairs of a model and a draw, which are finished one after another: a grid that
is broken off is complete in what it has.
"""

from dataclasses import dataclass

from benchmarks.grid_runner import Store
from benchmarks.photographs.grid import CHOICE_CORRELATION, Cell, choice_cells, run_cells, run_check, test_cell


DRAWS = 5
FIRST, SECOND, THIRD = (tuple((model, draw) for draw in range(DRAWS)) for model in ("A0", "A1", "A2"))
LATER = SECOND + THIRD
LARGE_RUNS = tuple(("B", draw) for draw in range(3))

POOLS = tuple(f"{name}, {pool}" for name in ("kl", "star") for pool in ("right", "unrelated", "plain"))
MAIN = ("zero-shot", "FLYP", *POOLS)
BOTH = ("conditional", "conditional + attribution", "defaults")
SHORT = ("zero-shot", "FLYP", "kl, right", "kl, unrelated", "star, right", "star, unrelated", *BOTH)
TWO = ("zero-shot", "FLYP", "kl, right", "kl, unrelated", "kl, plain", *BOTH)
# Whether plain captions in the pool do less harm: by default there are some with up to four classes.
SHARES = {
    2: ("defaults", "defaults, plain 0", "defaults, plain 0.5"),
    4: ("defaults", "defaults, plain 0"),
    6: ("defaults", "defaults, plain 0.1", "defaults, plain 0.25", "defaults, plain 0.5"),
}
WITH_PLAIN = {classes: ("zero-shot", "FLYP", *names) for classes, names in SHARES.items()}
LONG = {
    classes: ("zero-shot", "FLYP, long", *(f"{name}, long" for name in names)) for classes, names in SHARES.items()
}
MORE = ("kl, auto", "star, auto", "kl, found", "star, found", "CE", "L2-SP")
# With two classes, star leaves almost nothing to align.
MORE_OF_TWO = tuple(name for name in MORE if not name.startswith("star"))
REPAIRED = ("FLYP + repair", "kl + repair")
CLUSTERED = tuple(f"{name}, clusters" for name in REPAIRED)
LARGE = ("zero-shot", "FLYP", "kl, right", "star, right", "star, unrelated")


@dataclass(frozen=True)
class Stage:
    """A task, the methods that are compared on it, and on which runs.

    Attributes:
        kind: of model, "A" or "B".
        classes: how many.
        correlation: of the training images.
        methods: keys of `METHODS`.
        runs: pairs of a model and a draw.
    """

    kind: str
    classes: int
    correlation: float
    methods: tuple[str, ...]
    runs: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"model {self.kind}, {self.classes} classes, correlation {self.correlation:g}"

    def choices(self) -> list[Cell]:
        """What weights are chosen by."""
        return list(choice_cells("A0" if self.kind == "A" else "B", self.classes, self.methods))

    def tests(self, store: Store) -> list[Cell]:
        """What is tested, once all choices are in the store."""
        return [
            test_cell(store, run, self.classes, self.correlation, name) for run in self.runs for name in self.methods
        ]


STAGES = (
    Stage("A", 6, 0.95, MAIN, FIRST),
    Stage("A", 6, 0.95, BOTH, FIRST),
    Stage("A", 6, 1.0, SHORT, FIRST),
    Stage("A", 2, 0.95, TWO, FIRST),
    Stage("A", 2, 0.95, WITH_PLAIN[2], FIRST),
    Stage("A", 2, 1.0, WITH_PLAIN[2], FIRST),
    Stage("A", 6, 0.95, WITH_PLAIN[6], FIRST),
    Stage("A", 6, 1.0, WITH_PLAIN[6], FIRST),
    Stage("A", 4, 0.95, WITH_PLAIN[4], FIRST),
    Stage("A", 4, 1.0, WITH_PLAIN[4], FIRST),
    Stage("A", 4, 0.95, ("defaults, plain 0.1",), FIRST),
    Stage("A", 4, 1.0, ("defaults, plain 0.1",), FIRST),
    Stage("A", 2, 0.95, LONG[2], FIRST[:2]),
    Stage("A", 4, 0.95, LONG[4], FIRST[:2]),
    Stage("A", 6, 0.95, LONG[6], FIRST[:2]),
    Stage("B", 6, 0.95, ("zero-shot", "FLYP", "defaults"), LARGE_RUNS),
    Stage("A", 6, 0.95, MAIN + BOTH, SECOND),
    Stage("A", 6, 0.95, MORE, FIRST + SECOND),
    Stage("B", 6, 0.95, LARGE[:4], LARGE_RUNS),
    Stage("B", 6, 0.95, LARGE, LARGE_RUNS),
    Stage("A", 6, 0.5, SHORT, FIRST),
    Stage("A", 6, 0.8, SHORT, FIRST),
    Stage("A", 2, 1.0, TWO, FIRST),
    Stage("B", 6, 0.95, ("kl, unrelated", "conditional"), LARGE_RUNS),
    Stage("A", 2, 0.5, TWO, FIRST),
    Stage("A", 2, 0.8, TWO, FIRST),
    Stage("A", 6, 0.95, REPAIRED, FIRST),
    Stage("A", 2, 0.95, REPAIRED, FIRST),
    Stage("A", 6, 0.95, CLUSTERED, FIRST),
    Stage("A", 2, 0.95, CLUSTERED, FIRST),
    Stage("A", 6, 1.0, REPAIRED, FIRST),
    Stage("A", 6, 0.95, MAIN + BOTH, THIRD),
    Stage("A", 6, 1.0, SHORT, LATER),
    Stage("A", 2, 0.95, TWO, LATER),
    Stage("B", 6, 1.0, LARGE, LARGE_RUNS),
    Stage("B", 2, 0.95, ("zero-shot", "FLYP", "kl, right", "kl, unrelated"), LARGE_RUNS),
    Stage("A", 6, 0.95, MORE, THIRD),
    Stage("A", 6, 0.5, SHORT, LATER),
    Stage("A", 6, 0.8, SHORT, LATER),
    Stage("A", 2, 1.0, TWO, LATER),
    Stage("A", 2, 0.5, TWO, LATER),
    Stage("A", 2, 0.8, TWO, LATER),
    Stage("A", 4, 0.95, WITH_PLAIN[4], LATER),
    Stage("A", 4, 1.0, WITH_PLAIN[4], LATER),
    Stage("A", 2, 0.95, MORE_OF_TWO, FIRST + LATER),
    Stage("A", 6, 0.95, REPAIRED + CLUSTERED, LATER),
    Stage("A", 2, 0.95, REPAIRED + CLUSTERED, LATER),
    Stage("A", 2, 0.95, WITH_PLAIN[2], LATER),
    Stage("A", 2, 1.0, WITH_PLAIN[2], LATER),
    Stage("A", 6, 0.95, WITH_PLAIN[6], LATER),
    Stage("A", 6, 1.0, WITH_PLAIN[6], LATER),
)
# All of a short run, with weights by "auto".
QUICK = Stage("A", 6, CHOICE_CORRELATION, ("zero-shot", "FLYP", "kl, auto", "star, auto"), FIRST[:1])


def run_stage(stage: Stage, store: Store, processes: int) -> None:
    """Choose the weights of a stage, then test them; of its models, keep what they can do before."""
    run_cells(stage.choices(), store, processes, f"{stage.name}, choice of weights")
    run_cells(stage.tests(store), store, processes, stage.name)
    for model in dict.fromkeys(model for model, _ in stage.runs):
        run_check(model, store)
