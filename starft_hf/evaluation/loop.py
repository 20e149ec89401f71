"""One pass of a classifier over an evaluation set, by a trainer or without one."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.data.columns import ImageColumns
from starft_hf.data.decoding import SkippedImages
from starft_hf.data.examples import IndexedExamples
from starft_hf.data.strata import groups_of
from starft_hf.evaluation.counts import ClassificationCounts, warn_if_nan
from starft_hf.evaluation.mistakes import ConfidentMistakes
from starft_hf.evaluation.multi_label import MultiLabelEvaluation
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.evaluation.retrieval import RetrievalEvaluation
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.models.encoder import DualEncoder, batch_images
from starft_hf.models.heads import head_logits
from starft_hf.objectives.losses import similarity_logits
from starft_hf.utils.text import percent


logger = logging.get_logger(__name__)

_KEPT_MISTAKES = 12


class ClassifierEvaluation:
    """Classifies the batches of one dataset and accumulates the results.

    `head`, over the classes of `columns`, takes the place of the zero-shot classifier. Of the classes that a label is
    mapped to, the best counts.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        columns: ImageColumns,
        templates: Sequence[str],
        head: nn.Linear | None = None,
        keep_mistakes: int = 0,
    ):
        self.encoder = encoder
        self.class_names = columns.classifier or columns.class_names or ()
        self.label_names = columns.class_names or ()
        self.class_mapping = columns.class_mapping
        self.has_groups = columns.groups is not None
        self.templates = templates
        self.head = head
        self.counts = ClassificationCounts()
        self.skipped = SkippedImages()
        self.mistakes = ConfidentMistakes(keep_mistakes, columns.class_names or ())
        self.training_classes: Sequence[str] | None = None
        self._weights: Tensor | None = None

    def step(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Classify and count a batch by a forward of `model`; returns the logits `(N, classes)`."""
        with torch.no_grad():
            image_embeds = self.encoder.encode(model, images=batch_images(batch))
            if self.head is not None:
                logits = head_logits(self.head, image_embeds)
            else:
                if self._weights is None:
                    self._weights = zero_shot_weights(model, self.encoder, self.class_names, self.templates)
                # Autocast would compare classes in half precision, in which many are equal.
                logits = similarity_logits(image_embeds, self._weights.to(image_embeds), 1.0)
        if self.class_mapping is not None:
            logits = torch.stack([logits[:, list(classes)].amax(-1) for classes in self.class_mapping], dim=-1)
        self.counts.skipped += self.skipped.record(batch)
        rows = batch["valid"].nonzero().flatten() if "valid" in batch else torch.arange(len(logits))
        rows = rows.to(logits.device)
        if len(rows):
            self.counts.update(logits[rows], batch["labels"][rows], [batch["groups"][row] for row in rows.tolist()])
        # Rows of an iterable dataset have no index.
        if self.mistakes.limit and "sample_index" in batch:
            self.mistakes.update(logits, batch)
        return logits

    def keeps_logits(self, compute_metrics: Any, description: str) -> bool:
        """Whether a trainer, which calls its loop by `description`, needs what `step` returns."""
        return compute_metrics is not None or description == "Prediction"

    def result(self, training_shares: Mapping[str, float] | None = None) -> EvaluationResult:
        """The result over all processes; a ValueError if there were no rows.

        A set with other classes than `training_classes`, such as one that measures what is forgotten, has other
        groups: its result has no group-adjusted accuracy, even where names are the same.
        """
        # Without columns that name groups, the groups of a mapped set are its labels.
        classes = self.class_names if self.has_groups else self.label_names
        is_other = self.training_classes is not None and set(self.training_classes) != set(classes)
        shares = None if is_other else training_shares
        result = self.counts.gathered().result(shares)
        warn_if_nan(math.isnan(result.loss))
        if shares:
            _warn_of_other_groups(shares, result.group_accuracies, self.has_groups)
        return replace(result, mistakes=self.mistakes.gathered().of(result.worst_group))


def _warn_of_other_groups(shares: Mapping[str, float], found: Mapping[str, Any], has_groups: bool) -> None:
    """Warn of groups that do not count in the group-adjusted accuracy: of the training set, by share, or `found`."""
    missing = sorted(group for group, share in shares.items() if share and group not in found)
    # Classes that only an evaluation set has are there on purpose: the classifier was given their names.
    unknown = sorted(found.keys() - shares.keys()) if has_groups else []
    said = []
    if missing:
        part = percent(math.fsum(shares[group] for group in missing))
        said.append(f"has no images of {_named(missing)} of the training set, {part}% of its images")
    if unknown:
        said.append(f"has {_named(unknown)} that the training set does not have")
    if said:
        logger.warning_once(
            f"An evaluation set {' and '.join(said)}. They do not count in its group-adjusted accuracy. Evaluate on "
            "images of every group, and name the groups by the same values."
        )


def _named(groups: Sequence[str]) -> str:
    more = ", ..." if len(groups) > 8 else ""
    return f"{len(groups)} group{'s' if len(groups) > 1 else ''} ({', '.join(map(repr, groups[:8]))}{more})"


def evaluation_of(
    encoder: DualEncoder,
    columns: ImageColumns,
    templates: Sequence[str],
    head: nn.Linear | None = None,
    training_classes: Sequence[str] | None = None,
) -> ClassifierEvaluation | MultiLabelEvaluation | RetrievalEvaluation:
    """What measures a dataset with these columns for a trainer: a classifier if there are labels, else retrieval."""
    if columns.label is None:
        return RetrievalEvaluation(encoder)
    if columns.several is not None:
        return MultiLabelEvaluation(encoder, columns, templates)
    evaluation = ClassifierEvaluation(encoder, columns, templates, head, _KEPT_MISTAKES)
    evaluation.training_classes = training_classes
    return evaluation


def labels_that_count(batch: Mapping[str, Any]) -> Tensor:
    """The labels of a batch, `(N,)`, with -100, which losses and metrics ignore, for rows that are skipped.

    Where rows have several classes, these are 0 and 1, `(N, classes)`, as integers.
    """
    labels: Tensor = batch["labels"] if "labels" in batch else batch["targets"].long()
    if "valid" not in batch:
        return labels
    return labels.masked_fill(~batch["valid"].reshape(-1, *[1] * (labels.ndim - 1)), -100)


def training_group_shares(examples: Any, evaluated: ImageColumns | None = None) -> dict[str, float] | None:
    """The share of every group of a training set; None for iterable datasets, and if its groups are unknown.

    Values that only an `evaluated` dataset names, by a ClassLabel column, have its names.
    """
    if not isinstance(examples, IndexedExamples) or not hasattr(examples.dataset, "select_columns"):
        return None
    if (columns := examples.columns).label is None or columns.several is not None:
        return None
    # Classes would be compared with groups.
    if evaluated is not None and (evaluated.groups is None) != (columns.groups is None):
        return None
    if evaluated is not None and evaluated.groups is not None and columns.groups is not None:
        names = {**evaluated.groups.names, **columns.groups.names}
        columns = replace(columns, groups=replace(columns.groups, names=names))
    try:
        counts = Counter(groups_of(examples.dataset, columns))
    except ValueError as error:
        logger.warning("The shares of the groups of the training set are unknown: %s.", error)
        return None
    return {group: count / len(examples) for group, count in counts.items()}
