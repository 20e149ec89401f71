"""What became of the hypotheses of hypotheses.md, decided by the results."""

from collections.abc import Iterator, Sequence

from benchmarks.photographs.grid import TESTED
from benchmarks.photographs.methods import TUNED
from benchmarks.photographs.results import Estimate, Results, Task


MAIN, EXTREME, TWO, LARGE = Task("A", 6, 0.95), Task("A", 6, 1.0), Task("A", 2, 0.95), Task("B", 6, 0.95)
REGULARIZED = ("kl, right", "star, right", "conditional")
UNDECIDED = "not run yet"


def _outcome(holds: bool | None) -> str:
    return UNDECIDED if holds is None else "held" if holds else "**refuted**"


def _row(hypothesis: str, found: Estimate | None, holds: bool | None, what: str = "worst group") -> list[str]:
    text = "" if found is None else f"{found.signed} ({what}, {found.draws} draws)"
    return [hypothesis, text, _outcome(None if found is None else holds)]


def _above(found: Estimate | None) -> bool | None:
    """Whether a difference is above 0 by more than two standard errors."""
    return None if found is None or found.error is None else found.mean > 2 * found.error


def _gains(results: Results, task: Task, methods: Sequence[str]) -> dict[str, Estimate]:
    """What methods change in the worst group against zero-shot, those that were run."""
    found = {name: results.difference(task, name, "zero-shot") for name in methods}
    return {name: gain for name, gain in found.items() if gain is not None}


def verdicts(results: Results) -> list[list[str]]:
    """A row for each hypothesis, or for each part of it: what it says, what was found, and the outcome."""
    return [
        *_on_task(results, MAIN, ""),
        *_extremes(results),
        *_on_task(results, LARGE, "7. Model B, as "),
        *_defaults(results),
        *_individuals(results),
    ]


def _on_task(results: Results, task: Task, label: str) -> Iterator[list[str]]:
    """Hypotheses 1 to 5; of model B only 1 to 3."""
    loss = results.difference(task, "FLYP", "zero-shot")
    yield _row(f"{label}1. FLYP loses at least 10 points", loss, None if loss is None else loss.mean <= -10)
    for name in ("kl", "star"):
        kept = results.difference(task, f"{name}, right", "zero-shot")
        holds = None if kept is None else kept.mean >= -2
        yield _row(f"{label}2. {name} ends at most 2 points below zero-shot", kept, holds)
    numbers = (("3", "right", "unrelated"), ("4", "unrelated", "plain"))
    for number, own, other in numbers[: 1 if task == LARGE else None]:
        for name in ("kl", "star"):
            gain = results.difference(task, f"{name}, {own}", f"{name}, {other}")
            if gain is not None or task != LARGE:
                yield _row(f"{label}{number}. {name}: the pool {own} is better than {other}", gain, _above(gain))
    if task != LARGE:
        tuned = results.difference(task, TUNED, "kl, right")
        level = None if tuned is None else tuned.error is not None and abs(tuned.mean) <= 2 * tuned.error
        yield _row("5. tuned WiSE-FT is level with kl", tuned, level)


def _extremes(results: Results) -> Iterator[list[str]]:
    both = "conditional + attribution"
    runs = results.by_run(MAIN, both).keys()
    # Means over other runs cannot be compared.
    others = [name for name in results.methods(MAIN) if results.by_run(MAIN, name).keys() == runs]
    others = [name for name in others if name not in ("zero-shot", both)]
    for task, names, pick, text in (
        (MAIN, others, max, "is best at 0.95"),
        (EXTREME, REGULARIZED, min, "is the worst of the regularized ones at 1.0"),
    ):
        gains = _gains(results, task, [both, *names])
        if both in gains:
            first = pick(gains, key=lambda name: gains[name].mean)
            found = f"{pick.__name__}: {first}, {gains[first].signed}; {both}: {gains[both].signed}"
            yield [f"6. {both} {text}", found, _outcome(first == both)]


def _defaults(results: Results) -> Iterator[list[str]]:
    for task in (MAIN, TWO, LARGE):
        found = results.difference(task, "defaults", "zero-shot")
        if found is not None or task != LARGE:
            text = f"8. the defaults end at most 2 points below zero-shot ({task.name})"
            yield _row(text, found, None if found is None else found.mean >= -2)


def _individuals(results: Results) -> Iterator[list[str]]:
    splits = ("test", TESTED["new"])
    test, new = (results.difference(MAIN, "FLYP", "zero-shot", split, "average") for split in splits)
    if test is not None and new is not None:
        text = f"{test.signed} on test, {new.signed} on new individuals (average)"
        yield ["9. FLYP gains less on new individuals", text, _outcome(new.mean < test.mean)]
