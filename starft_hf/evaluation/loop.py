"""What one pass over an evaluation data set needs and leaves behind."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.data.columns import read_column
from starft_hf.data.examples import EvaluationExampleMaker, IndexedExamples
from starft_hf.evaluation.counts import ClassificationCounts
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.models import DualEncoder, batch_images, head_logits


class ClassifierEvaluation:
    """Classifies the batches of one data set and counts.

    Args:
        encoder: the model's conventions.
        class_names: names of the data set's classes.
        templates: prompt ensemble of the zero-shot classifier.
        head: a trained linear head over these very classes, used instead of the zero-shot classifier.
        class_mapping: for every label of the data set the classes that stand for it, of which the best counts; None
            where labels and classes are the same.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        class_names: Sequence[str],
        templates: Sequence[str],
        head: nn.Linear | None = None,
        class_mapping: Sequence[Sequence[int]] | None = None,
    ):
        self.encoder = encoder
        self.class_names = class_names
        self.templates = templates
        self.head = head
        self.class_mapping = class_mapping
        self.counts = ClassificationCounts()
        self._weights: Tensor | None = None

    def step(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Classify and count a batch by a forward of `model`; returns the logits `(N, classes)`."""
        with torch.no_grad():
            image_embeds = self.encoder.encode(model, images=batch_images(batch))
            if self.head is not None:
                logits = head_logits(self.head, image_embeds)
            else:
                logits = image_embeds @ self._zero_shot_weights(model).to(image_embeds).T
        if self.class_mapping is not None:
            logits = torch.stack([logits[:, list(classes)].amax(-1) for classes in self.class_mapping], dim=-1)
        rows = batch["valid"].nonzero().flatten() if "valid" in batch else torch.arange(len(logits))
        groups = [batch["groups"][row] for row in rows.tolist()]
        rows = rows.to(logits.device)
        if groups:
            self.counts.update(logits[rows], batch["labels"][rows], groups)
        return logits

    def _zero_shot_weights(self, model: nn.Module) -> Tensor:
        if self._weights is None:
            self._weights = zero_shot_weights(model, self.encoder, self.class_names, self.templates)
        return self._weights


def training_group_shares(examples: Any) -> dict[str, float] | None:
    """The share of every group of a training set, or None where it cannot be known in advance."""
    if not isinstance(examples, IndexedExamples) or not hasattr(examples.dataset, "select_columns"):
        return None
    columns = examples.columns
    if columns.label is None:
        return None
    name = EvaluationExampleMaker(columns, examples.make.preprocessor).group
    used = [column for column in columns.used if column not in (columns.image, columns.caption)]
    values = zip(*(read_column(examples.dataset, column) for column in used), strict=True)
    counts = Counter(name(dict(zip(used, row, strict=True))) for row in values)
    return {group: count / len(examples) for group, count in counts.items()}
