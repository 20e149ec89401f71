"""The content of a report: runs, with their results, training logs and WiSE-FT curves."""

import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from starft_hf.evaluation.results import (
    AnyResult,
    CurvePoint,
    EvaluationResult,
    RetrievalResult,
    classification_results,
    result_from_dict,
)


@dataclass(frozen=True)
class TrainingPoint:
    """The losses at one step of a training log.

    Attributes:
        step: optimizer steps so far.
        base_loss: in nats.
        reg_loss: the alignment loss before its weight is applied, in nats.
        reg_weight: weight of the alignment loss.
    """

    step: int
    base_loss: float
    reg_loss: float
    reg_weight: float

    @classmethod
    def from_log_history(cls, log_history: Iterable[Mapping[str, Any]]) -> list["TrainingPoint"]:
        """The training steps in `trainer.state.log_history`, in order, without evaluations and summaries.

        The alignment loss is 0 in the log of a Trainer without one. The later one of two entries of a step is used.
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
    """A model with its results.

    Attributes:
        method: name of what was done to the model, such as "zero-shot", "FLYP" or "StarFT".
        seed: seed of the run.
        results: by name of the dataset.
        log: the losses while training, in order of steps.
        curve: the WiSE-FT curve from the zero-shot model to this one, in accuracies.
        interpolated: alpha of the fine-tuned weights if `results` are those of an interpolation; None for the model
            as trained.

    Raises:
        ValueError: if there are no results, or an accuracy or an alpha is not between 0 and 1.
    """

    method: str
    seed: int
    results: Mapping[str, AnyResult]
    log: Sequence[TrainingPoint] = ()
    curve: Sequence[CurvePoint] = ()
    interpolated: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", dict(self.results))
        object.__setattr__(self, "log", tuple(self.log))
        object.__setattr__(self, "curve", tuple(sorted(self.curve, key=lambda point: point.alpha)))
        if not self.results:
            raise ValueError(f"{self} has no results; pass those of at least one dataset")
        fractions = {} if self.interpolated is None else {f"interpolated of {self}": self.interpolated}
        for point in self.curve:
            fractions |= {f"{name} of the WiSE-FT curve of {self}": value for name, value in asdict(point).items()}
        for dataset, result in self.results.items():
            if isinstance(result, RetrievalResult):
                recalls = {f"{name} of {self} on {dataset!r}": value for name, value in result.headline.items()}
                fractions |= recalls
                continue
            if not isinstance(result, EvaluationResult):
                raise ValueError(f"the result of {self} on {dataset!r} has no accuracies, which a report needs")
            if not result.group_accuracies:
                raise ValueError(f"the result of {self} on {dataset!r} has no groups; pass at least one group")
            accuracies = {"accuracy": result.accuracy, "worst_group_accuracy": result.worst_group_accuracy}
            accuracies |= {f"accuracy of group {group!r}": value for group, value in result.group_accuracies.items()}
            fractions |= {f"{name} of {self} on {dataset!r}": value for name, value in accuracies.items()}
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                hint = "; divide percentages by 100" if 1 < value <= 100 else ""
                raise ValueError(f"{name} is {value}; it must be between 0 and 1{hint}")

    def __str__(self) -> str:
        at = "" if self.interpolated is None else f", interpolated {self.interpolated:g}"
        return f"the run {self.method!r}, seed {self.seed}{at}"

    @property
    def classified(self) -> dict[str, EvaluationResult]:
        """The results on datasets whose images were classified."""
        return classification_results(self.results)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for `as_plain` and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Run":
        """The inverse of `as_dict`, also of what JSON keeps of it."""
        content = json.loads(json.dumps(as_plain(content)), object_hook=nan_where_none)
        parts = {
            "results": {dataset: result_from_dict(part) for dataset, part in content["results"].items()},
            "log": [TrainingPoint(**part) for part in content["log"]],
            "curve": [CurvePoint(**part) for part in content["curve"]],
        }
        return cls(**{**content, **parts})


def check_runs(runs: Sequence[Run]) -> None:
    """Check that there are runs to compare, all different and evaluated on the same data."""
    if not runs:
        raise ValueError("there are no runs to report; pass at least one Run")
    known = set()
    for run in runs:
        key = (run.method, run.interpolated, run.seed)
        if key in known:
            raise ValueError(f"runs contains duplicates of {run}; give runs of one method different seeds or names")
        known.add(key)
        _check_same_data(runs[0], run)


def _check_same_data(first: Run, run: Run) -> None:
    if set(run.results) != set(first.results):
        raise ValueError(
            f"{first} was evaluated on {sorted(first.results)}, {run} on {sorted(run.results)}; evaluate all runs of "
            "a report on the same datasets"
        )
    for dataset, result in run.results.items():
        expected = first.results[dataset]
        if not isinstance(result, EvaluationResult) or not isinstance(expected, EvaluationResult):
            _check_same_pairs(dataset, first, run)
            continue
        groups = {**expected.group_sizes, **expected.group_accuracies, **result.group_sizes, **result.group_accuracies}
        different = [
            group
            for group in groups
            if expected.group_sizes.get(group) != result.group_sizes.get(group)
            or (group in expected.group_accuracies) != (group in result.group_accuracies)
        ]
        if different:
            few, other = (
                {name: part.group_sizes.get(name, 0) for name in different[:6]} for part in (expected, result)
            )
            raise ValueError(
                f"{dataset!r} has the group sizes {few} in {first} and {other} in {run}; these are not the same data. "
                "Evaluate all runs on the same rows and groups, or give the datasets different names."
            )
        if result.bins and expected.bins and len(result.bins) != len(expected.bins):
            raise ValueError(
                f"{first} has {len(expected.bins)} reliability bins on {dataset!r} and {run} {len(result.bins)}; "
                "evaluate all runs with the same number"
            )


def _check_same_pairs(dataset: str, first: Run, run: Run) -> None:
    expected, result = first.results[dataset], run.results[dataset]
    if type(expected) is not type(result) or expected.sizes != result.sizes:
        counted = [
            dict(one.sizes) if isinstance(one, RetrievalResult) else "labeled images" for one in (expected, result)
        ]
        raise ValueError(
            f"{dataset!r} has {counted[0]} in {first} and {counted[1]} in {run}; these are not the same data. "
            "Evaluate all runs on the same rows and in the same way, or give the datasets different names."
        )


def as_plain(value: Any) -> Any:
    """`value` in types of strict JSON: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(part) for part in value]
    if isinstance(value, numbers.Integral):
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


# The numbers that may not be finite if a run diverged.
_MAY_BE_NAN = ("loss", "ece", "confidence", "base_loss", "reg_loss", "reg_weight")


def nan_where_none(part: dict[str, Any]) -> dict[str, Any]:
    """An object of JSON with the NaNs that `as_plain` made None."""
    return {key: math.nan if value is None and key in _MAY_BE_NAN else value for key, value in part.items()}
