"""Counts from which the metrics of a classifier are computed, so that no logits need to be kept or gathered."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from starft_hf.evaluation.metric_functions import (
    accuracies_of,
    adjusted_accuracy,
    calibration_bins,
    calibration_error,
    count_groups,
)
from starft_hf.evaluation.results import EvaluationResult, ReliabilityBin
from starft_hf.objectives.losses import as_float32_or_wider
from starft_hf.utils.collectives import world_size


logger = logging.get_logger(__name__)


class ClassificationCounts:
    """Accumulates, batch by batch, what the metrics of a classifier are computed from, whatever the batches.

    Args:
        num_bins: bins of equal width for the expected calibration error.
    """

    def __init__(self, num_bins: int = 15):
        self.num_bins = num_bins
        self.loss_sum = 0.0
        self.skipped = 0
        self.group_correct: Counter[str] = Counter()
        self.group_total: Counter[str] = Counter()
        self.bins = np.zeros((3, num_bins))
        self.class_total: Counter[int] = Counter()
        self.class_predicted: Counter[int] = Counter()
        self.class_correct: Counter[int] = Counter()

    def update(self, logits: Tensor, labels: Tensor, groups: Sequence[str]) -> None:
        """Count a batch: logits `(N, classes)`, labels `(N,)` and the name of every row's group."""
        logits, labels = as_float32_or_wider(logits).cpu(), labels.cpu()
        self.loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        confidence, predicted = logits.softmax(-1).double().max(-1)
        # NaN, from a model that has diverged, is not a prediction, though torch finds the maximum there.
        known = ~confidence.isnan()
        correct = (predicted == labels) & known
        right, rows = count_groups(correct, groups)
        self.group_correct.update(right)
        self.group_total.update(rows)
        self.bins += calibration_bins(confidence, correct, self.num_bins)
        self.class_total.update(labels.tolist())
        self.class_predicted.update(predicted[known].tolist())
        self.class_correct.update(labels[correct].tolist())

    def gathered(self) -> "ClassificationCounts":
        """The sum of the counts of all processes."""
        if world_size() == 1:
            return self
        everyone: list[Any] = [None] * world_size()
        dist.all_gather_object(everyone, vars(self))
        total = ClassificationCounts(self.num_bins)
        for counts in everyone:
            for name in counts.keys() - {"num_bins"}:
                setattr(total, name, getattr(total, name) + counts[name])
        return total

    def result(self, training_shares: Mapping[str, float] | None = None) -> EvaluationResult:
        """The metrics of everything that was counted.

        Args:
            training_shares: share of every group in the training set, for the group-adjusted accuracy; None skips it.

        Raises:
            ValueError: if nothing was counted.
        """
        total = self.group_total.total()
        if not total:
            raise ValueError(no_rows(self.skipped))
        accuracies = accuracies_of(self.group_correct, self.group_total)
        rows, right, confidence = self.bins
        # As in WILDS (arXiv 2012.07421), a class that is only predicted does not count; in the metric MacroF1 it does.
        right_of, predicted = self.class_correct, self.class_predicted
        f1 = [2 * right_of[label] / (count + predicted[label]) for label, count in self.class_total.items()]
        means = zip(rows, confidence / rows.clip(1), right / rows.clip(1), strict=True)
        return EvaluationResult(
            accuracy=self.group_correct.total() / total,
            worst_group_accuracy=min(accuracies.values()),
            group_accuracies=accuracies,
            group_sizes={group: self.group_total[group] for group in accuracies},
            loss=self.loss_sum / total,
            ece=calibration_error(self.bins),
            group_adjusted_accuracy=adjusted_accuracy(accuracies, training_shares or {}),
            bins=tuple(ReliabilityBin(int(count), float(mean), float(hits)) for count, mean, hits in means),
            macro_f1=fmean(f1),
            skipped=self.skipped,
        )


def warn_if_nan(is_nan: bool) -> None:
    """Warn of an evaluation of which embeddings are NaN: of all figures, none means anything."""
    if is_nan:
        logger.warning(
            "Embeddings of an evaluation are NaN, and its results mean nothing: the weights are damaged, or the dtype "
            "overflows."
        )


def no_rows(skipped: int) -> str:
    """What is wrong with an evaluation dataset of which nothing was counted."""
    why = f" ({skipped} were skipped because of their images)" if skipped else ""
    return f"the evaluation dataset has no rows{why}; pass one with readable rows"
