"""Evaluation where an image may have several classes: average precision and F1, by class and by group.

Average precision needs the scores of all images, so that they are kept, one number per image and class.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from starft_hf.data.columns import ImageColumns
from starft_hf.data.decoding import SkippedImages
from starft_hf.evaluation.counts import warn_if_nan
from starft_hf.evaluation.results import MultiLabelResult
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.models.encoder import DualEncoder, batch_images, logit_bias_of
from starft_hf.models.modes import unwrapped
from starft_hf.objectives.losses import similarity_logits
from starft_hf.utils.collectives import world_size


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

    def keeps_logits(self, compute_metrics: Any, description: str) -> bool:
        """Whether a trainer, which calls its loop by `description`, needs what `step` returns."""
        return compute_metrics is not None or description == "Prediction"

    def result(self, training_shares: Mapping[str, float] | None = None) -> MultiLabelResult:
        """The result over all processes; a ValueError if no row has a class. No metric uses `training_shares`."""
        own = (np.concatenate(self._logits), np.concatenate(self._targets), self._groups, self._skipped)
        parts: list[Any] = [own]
        if world_size() > 1:
            parts = [None] * world_size()
            dist.all_gather_object(parts, own)
        logits, targets = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
        warn_if_nan(bool(np.isnan(logits).any()))
        groups = [group for part in parts for group in part[2]] if self.has_groups else None
        return multi_label_result(logits, targets, self.class_names, groups, sum(part[3] for part in parts))
