"""What a report is made of: runs, with their results, their training logs and their WiSE-FT curves."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from starft_hf.evaluation.results import CurvePoint, EvaluationResult


@dataclass(frozen=True)
class TrainingPoint:
    """What a training log says at one step.

    Attributes:
        step: optimiser steps so far.
        base_loss: in nats.
        reg_loss: the alignment loss before its weight, in nats.
        reg_weight: weight of the alignment loss.
    """

    step: int
    base_loss: float
    reg_loss: float
    reg_weight: float

    @classmethod
    def from_log_history(cls, log_history: Iterable[Mapping[str, Any]]) -> list["TrainingPoint"]:
        """The training steps in `trainer.state.log_history`, in order; evaluations and summaries are left out.

        The log of a Trainer that has no alignment loss counts as one whose alignment loss is 0. Of two entries of one
        step the later one counts.
        """
        points = {}
        for entry in log_history:
            base = entry.get("base_loss", entry.get("loss"))
            if base is not None and "step" in entry:
                reg_loss, reg_weight = (float(entry.get(name, 0.0)) for name in ("reg_loss", "reg_weight"))
                points[entry["step"]] = cls(int(entry["step"]), float(base), reg_loss, reg_weight)
        return [points[step] for step in sorted(points)]


@dataclass(frozen=True)
class Run:
    """One model and what is known about it.

    Attributes:
        method: how the report calls what was done to the model, such as "zero-shot", "FLYP" or "StarFT".
        seed: of the run.
        results: by name of the data set.
        log: the losses while training, in order of the steps.
        curve: the WiSE-FT curve from the zero-shot model to this one, in accuracies.
        interpolated: share of the fine-tuned weights where `results` are those of an interpolation; None for the
            model as it was trained.

    Raises:
        ValueError: if there are no results, or an accuracy or a share of weights is not between 0 and 1.
    """

    method: str
    seed: int
    results: Mapping[str, EvaluationResult]
    log: Sequence[TrainingPoint] = ()
    curve: Sequence[CurvePoint] = ()
    interpolated: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", dict(self.results))
        object.__setattr__(self, "log", tuple(self.log))
        object.__setattr__(self, "curve", tuple(sorted(self.curve, key=lambda point: point.alpha)))
        if not self.results:
            raise ValueError(f"{self} has no results; pass what the evaluation of at least one data set gave")
        if self.interpolated is not None:
            _check_share(f"interpolated of {self}", self.interpolated)
        for point in self.curve:
            for name, value in asdict(point).items():
                _check_share(f"{name} of the WiSE-FT curve of {self}", value)
        for dataset, result in self.results.items():
            accuracies = {"accuracy": result.accuracy, "worst_group_accuracy": result.worst_group_accuracy}
            accuracies |= {f"accuracy of group {group!r}": value for group, value in result.group_accuracies.items()}
            if not result.group_accuracies:
                raise ValueError(f"the result of {self} on {dataset!r} has no groups; pass at least one group")
            for name, value in accuracies.items():
                _check_share(f"{name} of {self} on {dataset!r}", value)

    def __str__(self) -> str:
        at = "" if self.interpolated is None else f", interpolated {self.interpolated:g}"
        return f"the run {self.method!r}, seed {self.seed}{at}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, for `as_plain` and JSON."""
        return {
            "method": self.method,
            "seed": self.seed,
            "interpolated": self.interpolated,
            "results": {dataset: result.as_dict() for dataset, result in self.results.items()},
            "log": [asdict(point) for point in self.log],
            "curve": [asdict(point) for point in self.curve],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Run":
        """The run that `as_dict` and `as_plain` made `content` of."""
        content = _with_nan(content)
        return cls(
            method=content["method"],
            seed=content["seed"],
            interpolated=content["interpolated"],
            results={dataset: EvaluationResult.from_dict(part) for dataset, part in content["results"].items()},
            log=[TrainingPoint(**part) for part in content["log"]],
            curve=[CurvePoint(**part) for part in content["curve"]],
        )


def check_runs(runs: Sequence[Run]) -> None:
    """Check that `runs` can be compared.

    Raises:
        ValueError: if there are none, two are the same, or they were not evaluated on the same data.
    """
    if not runs:
        raise ValueError("there are no runs to report; pass at least one Run")
    known = set()
    for run in runs:
        key = (run.method, run.interpolated, run.seed)
        if key in known:
            raise ValueError(f"{run} is there twice; give runs of one method seeds or names that differ")
        known.add(key)
        _check_same_data(runs[0], run)


def _check_same_data(first: Run, run: Run) -> None:
    if set(run.results) != set(first.results):
        raise ValueError(
            f"{first} was evaluated on {sorted(first.results)}, {run} on {sorted(run.results)}; a report needs the "
            "same data sets for all runs"
        )
    for dataset, result in run.results.items():
        expected = first.results[dataset]
        if dict(result.group_sizes) != dict(expected.group_sizes) or set(result.group_accuracies) != set(
            expected.group_accuracies
        ):
            raise ValueError(
                f"{dataset!r} has the groups {_groups(expected)} in {first} and {_groups(result)} in {run}; these are "
                "not the same data. Evaluate all runs on the same rows and groups, or name the data sets differently."
            )
        if result.bins and expected.bins and len(result.bins) != len(expected.bins):
            raise ValueError(
                f"{first} has {len(expected.bins)} reliability bins on {dataset!r} and {run} {len(result.bins)}; "
                "evaluate all runs with the same number"
            )


def _groups(result: EvaluationResult) -> str:
    sizes = [f"{group!r}: {result.group_sizes.get(group, 0)}" for group in result.group_accuracies]
    return f"{{{', '.join(sizes[:6])}{', ...' if len(sizes) > 6 else ''}}}"


def _check_share(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        hint = "; divide percentages by 100" if 1 < value <= 100 else ""
        raise ValueError(f"{what} is {value}; it has to be a share from 0 to 1{hint}")


def as_plain(value: Any) -> Any:
    """`value` with nothing in it that JSON does not have: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(part) for part in value]
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return value


# The numbers that are not finite where a run diverged.
_MAY_BE_NAN = ("loss", "ece", "confidence", "base_loss", "reg_loss", "reg_weight")


def _with_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: math.nan if part is None and key in _MAY_BE_NAN else _with_nan(part) for key, part in value.items()
        }
    if isinstance(value, list):
        return [_with_nan(part) for part in value]
    return value
