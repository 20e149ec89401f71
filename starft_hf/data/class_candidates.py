"""Captions of classes under one spurious template, as candidates that the whole batch is compared with.

The template belongs to the batch over all processes, not to a sample, and so do the classes if there are too many to
compare all. Both are known in the step, where the texts are encoded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from starft_hf.data.captions import CaptionBank
from starft_hf.data.collator import encode_rows
from starft_hf.data.randomness import Draw, batch_generator
from starft_hf.models.texts import TextEncoding
from starft_hf.utils.collectives import gather_values


class ClassCandidates:
    """Adds the texts of a regularizer that compares classes to a batch.

    A class that a template may not be drawn for is not a candidate under it; templates with fewer than two classes are
    never drawn. At most `limit` classes are compared, unless the batch itself has more.
    """

    def __init__(self, bank: CaptionBank, encode_texts: TextEncoding | None, seed: int, limit: int):
        self.bank = bank
        self.encode_texts = encode_texts
        self.seed = seed
        self.limit = limit
        assert bank.pool is not None
        classes = {template: bank.classes_of(template) for template in range(len(bank.pool))}
        self._classes = {template: own for template, own in classes.items() if len(own) > 1}
        if not self._classes:
            raise ValueError(
                "no template of the spuriosity pool may be drawn for two classes, so no classes can be compared; "
                "add templates without `classes`, or use regularizer='kl'"
            )
        weights = np.array([1.0 if bank.pool.weights is None else bank.pool.weights[t] for t in self._classes])
        self._bounds = np.cumsum(weights / weights.sum())

    def __call__(self, batch: Mapping[str, Any], step: int, part: int) -> dict[str, Any]:
        """The batch with `spurious_rows`, `spurious_ids` and `column_labels`, `(M,)` each: one entry per class.

        Its `captions`, if it has any, are encoded together with these texts and become `caption_rows`. `part` is the
        place of the batch among those whose gradients the optimizer step accumulates.
        """
        if "caption_rows" in batch:
            raise ValueError(
                "the batch has caption_rows, but a regularizer that compares classes encodes captions with its own "
                "texts; let the data collator return them as 'captions', as StarFTCollator(encode_captions=False) does"
            )
        bank = self.bank
        template, spurious = self.templates(step, part)
        classes = self._chosen(self._classes[spurious], batch, step, part)
        texts = {"spurious_rows": [bank.spurious_caption(label, template, spurious) for label in classes]}
        if "captions" in batch:
            texts["caption_rows"] = batch["captions"]
        added = encode_rows(texts, self.encode_texts)
        added["spurious_ids"] = torch.tensor([bank.spurious_id(label, template, spurious) for label in classes])
        added["column_labels"] = torch.tensor(classes)
        device = batch["pixel_values"].device
        kept = {name: value for name, value in batch.items() if name != "captions"}
        return kept | {name: value.to(device) for name, value in added.items()}

    def templates(self, step: int, part: int) -> tuple[int, int]:
        """The caption template and the spurious template of a batch."""
        generator = batch_generator(self.seed, step, part, Draw.SHARED_CAPTION_TEMPLATE)
        template = int(generator.integers(len(self.bank.caption_templates)))
        generator = batch_generator(self.seed, step, part, Draw.SHARED_SPURIOUS_TEMPLATE)
        # Rounding may leave the last bound below 1.
        place = min(int(np.searchsorted(self._bounds, generator.random(), side="right")), len(self._bounds) - 1)
        return template, list(self._classes)[place]

    def _chosen(self, classes: Sequence[int], batch: Mapping[str, Any], step: int, part: int) -> list[int]:
        """All of `classes`, or those of the batch over all processes and random others."""
        if len(classes) <= self.limit:
            return list(classes)
        labels = gather_values(batch["labels"])
        if batch.get("valid") is not None:
            labels = labels[gather_values(batch["valid"])]
        present = set(labels.tolist())
        own = [label for label in classes if label in present]
        others = [label for label in classes if label not in present]
        generator = batch_generator(self.seed, step, part, Draw.OTHER_CLASSES)
        drawn = generator.choice(len(others), max(min(self.limit - len(own), len(others)), 0), replace=False)
        return sorted([*own, *(others[place] for place in drawn)])
