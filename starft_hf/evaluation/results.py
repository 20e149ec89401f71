"""Results of evaluations, as values that can be stored, compared and drawn."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from starft_hf.utils.names import log_names


MOST_LOGGED_GROUPS = 20


@dataclass(frozen=True)
class ReliabilityBin:
    """The predictions whose confidence falls between two bounds: their number, mean confidence and accuracy."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the sample's index, true and predicted class, confidence in the latter, and group."""

    sample: int
    label: str
    predicted: str
    confidence: float
    group: str


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of a classifier on a dataset. Accuracies, errors and confidences are from 0 to 1.

    Attributes:
        accuracy: over all rows.
        worst_group_accuracy: accuracy in the group where it is lowest.
        group_accuracies: accuracy in every group, by name.
        group_sizes: rows in every group.
        loss: mean cross-entropy in nats.
        ece: expected calibration error over the whole set.
        group_adjusted_accuracy: average weighted by the groups' shares of the training set; None if unknown.
        bins: reliability bins of equal width, from confidence 0 to 1; empty ones have count 0.
        mistakes: the most confident mistakes of the worst group.
        macro_f1: mean of F1 over the classes that occur among the labels; None if it was not counted.
        skipped: rows whose images cannot be read; no metric counts them.
    """

    accuracy: float
    worst_group_accuracy: float
    group_accuracies: Mapping[str, float]
    group_sizes: Mapping[str, int]
    loss: float
    ece: float
    group_adjusted_accuracy: float | None = None
    bins: tuple[ReliabilityBin, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    macro_f1: float | None = None
    skipped: int = 0

    @property
    def worst_group(self) -> str:
        """The name of the group with the lowest accuracy."""
        return min(self.group_accuracies, key=lambda group: self.group_accuracies[group])

    @property
    def gap(self) -> float:
        """The average accuracy less that of the worst group."""
        return self.accuracy - self.worst_group_accuracy

    def metrics(self) -> dict[str, float]:
        """All figures, with each group's accuracy."""
        return self._figures() | {f"accuracy_{group}": accuracy for group, accuracy in self.group_accuracies.items()}

    def logged(self, groups: bool = False, wanted: str | None = None) -> dict[str, float | str]:
        """The figures that a trainer logs, and the name of the worst group, under keys without spaces.

        Args:
            groups: whether to add the accuracy of each group, if there are no more than 20.
            wanted: a metric, maybe with a prefix, that is added in any case if it is the accuracy of a group.
        """
        names = log_names(self.group_accuracies)
        logged: dict[str, float | str] = {**self._figures(), "worst_group": self.worst_group}
        for group, accuracy in self.group_accuracies.items():
            if groups and len(names) <= MOST_LOGGED_GROUPS:
                logged[f"accuracy_{names[group]}"] = accuracy
            for name in (group, names[group]):
                if wanted is not None and wanted.endswith(f"accuracy_{name}"):
                    logged[f"accuracy_{name}"] = accuracy
        return logged

    def _figures(self) -> dict[str, float]:
        figures = {"loss": self.loss, "accuracy": self.accuracy, "worst_group_accuracy": self.worst_group_accuracy}
        if self.group_adjusted_accuracy is not None:
            figures["group_adjusted_accuracy"] = self.group_adjusted_accuracy
        figures["ece"] = self.ece
        if self.skipped:
            figures["skipped_images"] = self.skipped
        return figures

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EvaluationResult":
        """The result from what `as_dict` returned."""
        bins = tuple(ReliabilityBin(**part) for part in content.get("bins", ()))
        mistakes = tuple(Mistake(**part) for part in content.get("mistakes", ()))
        return cls(**{**content, "bins": bins, "mistakes": mistakes})


@dataclass(frozen=True)
class Retention:
    """The results on a retention set, a dataset of another task, before and after fine-tuning."""

    before: EvaluationResult
    after: EvaluationResult

    @property
    def change(self) -> float:
        """The change of accuracy, negative if the model has forgotten."""
        return self.after.accuracy - self.before.accuracy

    def metrics(self, name: str) -> dict[str, float]:
        """Figures for a log."""
        return {f"{name}_accuracy": self.after.accuracy, f"{name}_accuracy_change": self.change}


@dataclass(frozen=True)
class CurvePoint:
    """A model between two others, as in WiSE-FT (arXiv 2109.01903).

    Attributes:
        alpha: weight of the second model, usually the fine-tuned one, from 0 to 1.
        average: accuracy, on data as in training.
        worst_group: accuracy in the worst group, or on shifted data.
    """

    alpha: float
    average: float
    worst_group: float


def retention_metrics(retention: Mapping[str, Retention]) -> dict[str, float]:
    """The metrics of several retention sets, by their names, as `Retention.metrics`."""
    return {key: value for name, kept in retention.items() for key, value in kept.metrics(name).items()}
