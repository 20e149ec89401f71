"""Results of evaluations, as values that can be stored, compared and drawn."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any, TypeAlias

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
    def sizes(self) -> Mapping[str, int]:
        """What was counted: rows in every group."""
        return self.group_sizes

    @property
    def headline(self) -> dict[str, float]:
        """What a retention set is compared by: the accuracy."""
        return {"accuracy": self.accuracy}

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
class RetrievalResult:
    """How well a dual encoder finds the captions of images and the images of captions, from 0 to 1.

    Recall at k is the fraction of images with one of their captions among the k most similar captions, and the
    fraction of captions with one of their images among the k most similar images. Images and captions count once, in
    however many rows they are: rows have the same image if the model gets the same pixels, and the same caption if the
    texts are equal. Ties count against the model.

    Attributes:
        image_to_text_recall_at_1, image_to_text_recall_at_5, image_to_text_recall_at_10: of the images.
        text_to_image_recall_at_1, text_to_image_recall_at_5, text_to_image_recall_at_10: of the captions.
        images: how many distinct images there are.
        captions: how many distinct captions there are.
        skipped: rows whose images cannot be read; no metric counts them or their captions.
    """

    image_to_text_recall_at_1: float
    image_to_text_recall_at_5: float
    image_to_text_recall_at_10: float
    text_to_image_recall_at_1: float
    text_to_image_recall_at_5: float
    text_to_image_recall_at_10: float
    images: int
    captions: int
    skipped: int = 0

    @property
    def mean_recall(self) -> float:
        """The mean of the six recalls."""
        return fmean(getattr(self, name) for name in RECALLS)

    @property
    def sizes(self) -> Mapping[str, int]:
        """What was counted: images and captions."""
        return {"images": self.images, "captions": self.captions}

    @property
    def headline(self) -> dict[str, float]:
        """What a retention set is compared by: the recalls at 1 and the mean of all."""
        return {name: getattr(self, name) for name in (*RECALLS_AT_1, MEAN_RECALL)}

    def metrics(self) -> dict[str, float]:
        """All figures."""
        figures = {name: getattr(self, name) for name in (*RECALLS, MEAN_RECALL)}
        return figures | ({"skipped_images": self.skipped} if self.skipped else {})

    def logged(self, groups: bool = False, wanted: str | None = None) -> dict[str, float | str]:
        """The figures that a trainer logs; there are no groups to add."""
        return dict(self.metrics())

    def as_dict(self) -> dict[str, Any]:
        """All fields and the mean, for JSON."""
        return {**asdict(self), MEAN_RECALL: self.mean_recall}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RetrievalResult":
        """The result from what `as_dict` returned."""
        return cls(**{name: value for name, value in content.items() if name != MEAN_RECALL})


RECALLS = tuple(field.name for field in fields(RetrievalResult) if "_recall_at_" in field.name)
RECALLS_AT_1 = ("image_to_text_recall_at_1", "text_to_image_recall_at_1")
MEAN_RECALL = "mean_recall"


@dataclass(frozen=True)
class MultiLabelResult:
    """The metrics of a multi-label classifier on a dataset, from 0 to 1 but for the loss.

    Average precision (AP) and F1 of a class are defined if an image has the class, and those of a group if one of its
    images has a class: what is undefined counts nowhere. F1 is that of the classes with a probability of at least 0.5.

    Attributes:
        map: mean of AP over the classes.
        micro_f1: F1 of all pairs of an image and a class.
        macro_f1: mean of F1 over the classes.
        worst_class_ap: AP of the class where it is lowest, the worst class.
        worst_class_f1: F1 of the class where that is lowest.
        loss: mean binary cross-entropy in nats.
        class_ap: AP by class.
        class_f1: F1 by class.
        class_sizes: images of every class.
        group_map: mean of AP over the classes within a group, by group; a class counts in the groups that have it.
        group_f1: F1 of all pairs of an image and a class, by group.
        group_sizes: images in every group; empty without groups.
        skipped: rows whose images cannot be read; no metric counts them.
    """

    map: float
    micro_f1: float
    macro_f1: float
    worst_class_ap: float
    worst_class_f1: float
    loss: float
    class_ap: Mapping[str, float]
    class_f1: Mapping[str, float]
    class_sizes: Mapping[str, int]
    group_map: Mapping[str, float]
    group_f1: Mapping[str, float]
    group_sizes: Mapping[str, int]
    skipped: int = 0

    @property
    def worst_class(self) -> str:
        """The class with the lowest AP."""
        return min(self.class_ap, key=lambda name: self.class_ap[name])

    @property
    def worst_group(self) -> str | None:
        """The group with the lowest mean AP; None without groups."""
        return min(self.group_map, key=lambda name: self.group_map[name], default=None)

    def logged(self, groups: bool = False, wanted: str | None = None) -> dict[str, float | str]:
        """The figures that a trainer logs, and the names of the worst class and group, under keys without spaces.

        Args:
            groups: whether to add the figures of each group, if there are no more than 20.
            wanted: a metric, maybe with a prefix, that is added in any case if it is of a class or a group.
        """
        logged: dict[str, float | str] = {name: getattr(self, name) for name in _MULTI_LABEL_FIGURES}
        logged["worst_class"] = self.worst_class
        if self.worst_group is not None:
            logged["worst_group_map"] = self.group_map[self.worst_group]
            logged["worst_group_f1"] = min(self.group_f1.values())
            logged["worst_group"] = self.worst_group
        if self.skipped:
            logged["skipped_images"] = self.skipped
        of_groups = {"map": self.group_map, "f1": self.group_f1}
        of_classes = {"class_ap": self.class_ap, "class_f1": self.class_f1}
        for kind, part in (of_groups | of_classes).items():
            for name, key in log_names(part).items():
                is_wanted = wanted is not None and wanted.endswith((f"{kind}_{key}", f"{kind}_{name}"))
                if is_wanted or (groups and kind in of_groups and len(part) <= MOST_LOGGED_GROUPS):
                    logged[f"{kind}_{key}"] = part[name]
        return logged

    @property
    def sizes(self) -> Mapping[str, int]:
        """What was counted: images of every class."""
        return self.class_sizes

    @property
    def headline(self) -> dict[str, float]:
        """What results are compared by: the worst class, and the mean over classes."""
        return {"worst_class_ap": self.worst_class_ap, "map": self.map}

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "MultiLabelResult":
        """The result from what `as_dict` returned."""
        return cls(**content)


_MULTI_LABEL_FIGURES = ("loss", "map", "micro_f1", "macro_f1", "worst_class_ap", "worst_class_f1")

AnyResult: TypeAlias = EvaluationResult | RetrievalResult | MultiLabelResult


def result_from_dict(content: Mapping[str, Any]) -> AnyResult:
    """The result from what its `as_dict` returned."""
    if "class_ap" in content:
        return MultiLabelResult.from_dict(content)
    return (RetrievalResult if RECALLS[0] in content else EvaluationResult).from_dict(content)


def classification_results(results: Mapping[str, AnyResult]) -> dict[str, EvaluationResult]:
    """Those of `results` that are of datasets whose images were classified."""
    return {name: result for name, result in results.items() if isinstance(result, EvaluationResult)}


def retrieval_results(results: Mapping[str, AnyResult]) -> dict[str, RetrievalResult]:
    """Those of `results` that are of datasets for retrieval."""
    return {name: result for name, result in results.items() if isinstance(result, RetrievalResult)}


def multi_label_results(results: Mapping[str, AnyResult]) -> dict[str, MultiLabelResult]:
    """Those of `results` that are of datasets whose images may have several classes."""
    return {name: result for name, result in results.items() if isinstance(result, MultiLabelResult)}


@dataclass(frozen=True)
class Retention:
    """The results on a retention set, a dataset of another task, before and after fine-tuning."""

    before: AnyResult
    after: AnyResult

    @property
    def changes(self) -> dict[str, float]:
        """The changes of the results' `headline`, negative if the model has forgotten."""
        before = self.before.headline
        return {name: value - before[name] for name, value in self.after.headline.items()}

    @property
    def change(self) -> float:
        """The change of accuracy, or of the mean recall, negative if the model has forgotten."""
        return list(self.changes.values())[-1]

    def metrics(self, name: str) -> dict[str, float]:
        """Figures for a log."""
        after = {f"{name}_{measure}": value for measure, value in self.after.headline.items()}
        return after | {f"{name}_{measure}_change": value for measure, value in self.changes.items()}


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
