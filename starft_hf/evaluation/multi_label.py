"""Evaluation where an image may have several classes: average precision and F1, by class and by group.

Average precision needs the scores of all images, so that they are kept, one number per image and class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from starft_hf.data.columns import ImageColumns
from starft_hf.data.decoding import SkippedImages
from starft_hf.evaluation.results import MOST_LOGGED_GROUPS, EvaluationResult
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.models.encoder import DualEncoder, batch_images, logit_bias_of
from starft_hf.models.modes import unwrapped
from starft_hf.objectives.losses import similarity_logits
from starft_hf.utils.collectives import world_size
from starft_hf.utils.names import log_names


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
        logged: dict[str, float | str] = {name: getattr(self, name) for name in _LOGGED}
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

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


AnyResult: TypeAlias = EvaluationResult | MultiLabelResult


def result_from_dict(content: Mapping[str, Any]) -> AnyResult:
    """The result, of either kind, from what its `as_dict` returned."""
    return MultiLabelResult(**content) if "class_ap" in content else EvaluationResult.from_dict(content)


_LOGGED = ("loss", "map", "micro_f1", "macro_f1", "worst_class_ap", "worst_class_f1")


def multi_label_result(
    logits: NDArray[np.floating],
    targets: NDArray[np.bool_],
    class_names: Sequence[str],
    groups: Sequence[str] | None = None,
    skipped: int = 0,
) -> MultiLabelResult:
    """The metrics of images.

    Args:
        logits: `(N, C)`; a class is predicted where its logit is at least 0, that is a probability of 0.5.
        targets: which classes images have, `(N, C)`.
        class_names: C names.
        groups: the name of the group of every image; None without groups.
        skipped: rows that were skipped.

    Raises:
        ValueError: if there are no images, or none of them has a class.
    """
    if not targets.any():
        what = (
            "no image of the evaluation dataset has a class" if len(targets) else "the evaluation dataset has no rows"
        )
        note = f" ({skipped} were skipped because of their images)" if skipped else ""
        raise ValueError(f"{what}{note}, and no metric is defined; pass images of some of the classes")
    loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(targets).to(_dtype(logits)))
    # NaN, from a model that has diverged, is not a prediction, and ranks last.
    scores = np.nan_to_num(logits, nan=np.finfo(logits.dtype).min)
    predicted = scores >= 0
    ap, f1 = _by_class(scores, predicted, targets)
    found = list(ap)
    names = {} if groups is None else {name: np.array(groups) == name for name in sorted(set(groups))}
    kept = {name: rows for name, rows in names.items() if targets[rows].any()}
    return MultiLabelResult(
        map=fmean(ap.values()),
        micro_f1=_f1(predicted, targets),
        macro_f1=fmean(f1.values()),
        worst_class_ap=min(ap.values()),
        worst_class_f1=min(f1.values()),
        loss=float(loss),
        class_ap={class_names[index]: ap[index] for index in found},
        class_f1={class_names[index]: f1[index] for index in found},
        class_sizes={class_names[index]: int(targets[:, index].sum()) for index in range(len(class_names))},
        group_map={
            name: fmean(_by_class(scores[rows], predicted[rows], targets[rows])[0].values())
            for name, rows in kept.items()
        },
        group_f1={name: _f1(predicted[rows], targets[rows]) for name, rows in kept.items()},
        group_sizes={name: int(rows.sum()) for name, rows in names.items()},
        skipped=skipped,
    )


def _dtype(logits: NDArray[np.floating]) -> torch.dtype:
    return torch.from_numpy(logits).dtype


def _by_class(
    scores: NDArray[np.floating], predicted: NDArray[np.bool_], targets: NDArray[np.bool_]
) -> tuple[dict[int, float], dict[int, float]]:
    """AP and F1 of the classes that images have, by their indices."""
    present = targets.any(0).nonzero()[0].tolist()
    ap = {index: float(average_precision_score(targets[:, index], scores[:, index])) for index in present}
    return ap, {index: _f1(predicted[:, index], targets[:, index]) for index in present}


def _f1(predicted: NDArray[np.bool_], targets: NDArray[np.bool_]) -> float:
    return float(2 * (predicted & targets).sum() / (predicted.sum() + targets.sum()))


class MultiLabelEvaluation:
    """Scores the batches of one dataset, whose rows have any number of classes, and keeps the scores."""

    def __init__(self, encoder: DualEncoder, columns: ImageColumns, templates: Sequence[str]):
        self.encoder = encoder
        self.class_names = columns.class_names or ()
        self.has_groups = columns.groups is not None
        self.templates = templates
        self.skipped = SkippedImages()
        self._skipped = 0
        self._logits: list[NDArray[np.floating]] = []
        self._targets: list[NDArray[np.bool_]] = []
        self._groups: list[str] = []
        self._weights: Tensor | None = None

    def step(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Score and keep a batch by a forward of `model`; returns the logits `(N, classes)`."""
        with torch.no_grad():
            images = self.encoder.encode(model, images=batch_images(batch))
            if self._weights is None:
                self._weights = zero_shot_weights(model, self.encoder, self.class_names, self.templates)
            bias = logit_bias_of(unwrapped(model))
            assert bias is not None
            logits = similarity_logits(images, self._weights.to(images), 1.0) + bias
        self._skipped += self.skipped.record(batch)
        valid = batch["valid"].tolist() if "valid" in batch else [True] * len(logits)
        rows = [row for row, is_sample in enumerate(valid) if is_sample]
        self._logits.append(logits[rows].cpu().numpy())
        self._targets.append(batch["targets"][rows].cpu().numpy() > 0)
        self._groups += [batch["groups"][row] for row in rows]
        return logits

    def result(self, training_shares: Mapping[str, float] | None = None) -> MultiLabelResult:
        """The result over all processes; a ValueError if no row has a class. No metric uses `training_shares`."""
        own = (np.concatenate(self._logits), np.concatenate(self._targets), self._groups, self._skipped)
        parts: list[Any] = [own]
        if world_size() > 1:
            parts = [None] * world_size()
            dist.all_gather_object(parts, own)
        logits, targets = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
        groups = [group for part in parts for group in part[2]] if self.has_groups else None
        return multi_label_result(logits, targets, self.class_names, groups, sum(part[3] for part in parts))
