"""Captions of the classes under one spurious template, which the whole batch is compared with.

The template belongs to the batch, over all processes, rather than to a sample. So do the classes where there are too
many for all of them: both are known in the step, and the texts are made there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starft_hf.data.captions import CaptionBank
from starft_hf.data.collator import encode_rows
from starft_hf.data.randomness import Draw, batch_generator
from starft_hf.models.texts import TextEncoding
from starft_hf.utils.collectives import gather_values


class ClassColumns:
    """Adds to a batch the texts of a regularizer that compares classes.

    Which template is drawn, and which classes beside those of the batch, depends on the seed, the optimiser step and
    the place of the batch in it, as `batch_generator` says. A template that may not be drawn for some class has no
    column for it; one that is left with a single class is never drawn, because there is nothing to compare.

    Args:
        bank: the captions.
        encode_texts: turns texts into arguments of the model's forward.
        seed: of the draws.
        limit: classes that are compared at most, unless the batch itself has more.

    Raises:
        ValueError: if no template of the pool may be drawn for two classes.
    """

    def __init__(self, bank: CaptionBank, encode_texts: TextEncoding, seed: int, limit: int):
        self.bank = bank
        self.encode_texts = encode_texts
        self.seed = seed
        self.limit = limit
        assert bank.pool is not None
        classes = {template: bank.classes_of(template) for template in range(len(bank.pool))}
        self._classes = {template: own for template, own in classes.items() if len(own) > 1}
        if not self._classes:
            raise ValueError(
                "no template of the spuriosity pool may be drawn for two classes, so there are no classes to compare "
                "under it; add templates without `classes`, or use regularizer='kl'"
            )
        weights = np.array([1.0 if bank.pool.weights is None else bank.pool.weights[t] for t in self._classes])
        self._bounds = np.cumsum(weights / weights.sum())

    def __call__(self, batch: Mapping[str, Any], step: int, part: int) -> dict[str, Any]:
        """The batch with `spurious_rows`, `spurious_ids` and `column_labels`, `(M,)` each: one entry per class.

        Its `captions`, where there are any, are encoded together with these texts, and become `caption_rows`.

        Args:
            batch: of this process, on its device.
            step: the optimiser step.
            part: the place of the batch among those whose gradients the step accumulates.

        Raises:
            ValueError: if the batch holds captions that are encoded already.
        """
        if "caption_rows" in batch:
            raise ValueError(
                "the batch has caption_rows, but a regularizer that compares classes adds texts to the batch, and "
                "encodes all of them together; let the data collator leave the captions as strings under 'captions', "
                "as StarFTCollator(encode_captions=False) does"
            )
        caption_template, template = self.templates(step, part)
        classes = self._columns(self._classes[template], batch, step, part)
        bank = self.bank
        texts = {"spurious_rows": [bank.spurious_caption(label, caption_template, template) for label in classes]}
        if "captions" in batch:
            texts["caption_rows"] = batch["captions"]
        encoded = encode_rows(texts, self.encode_texts)
        encoded["spurious_ids"] = torch.tensor([bank.spurious_id(n, caption_template, template) for n in classes])
        encoded["column_labels"] = torch.tensor(classes)
        device = batch["pixel_values"].device
        moved = {name: value.to(device) for name, value in encoded.items()}
        return {**{name: value for name, value in batch.items() if name != "captions"}, **moved}

    def templates(self, step: int, part: int) -> tuple[int, int]:
        """The caption template and the spurious template of a batch."""
        generator = batch_generator(self.seed, step, part, Draw.SHARED_CAPTION_TEMPLATE)
        caption_template = int(generator.integers(len(self.bank.caption_templates)))
        generator = batch_generator(self.seed, step, part, Draw.SHARED_SPURIOUS_TEMPLATE)
        # The last bound may be a rounding error below 1.
        place = min(int(np.searchsorted(self._bounds, generator.random(), side="right")), len(self._bounds) - 1)
        return caption_template, list(self._classes)[place]

    def _columns(self, classes: Sequence[int], batch: Mapping[str, Any], step: int, part: int) -> list[int]:
        if len(classes) <= self.limit:
            return list(classes)
        present = set(self._labels_of(batch).tolist())
        own = [label for label in classes if label in present]
        others = [label for label in classes if label not in present]
        generator = batch_generator(self.seed, step, part, Draw.OTHER_CLASSES)
        drawn = generator.choice(len(others), max(min(self.limit - len(own), len(others)), 0), replace=False)
        return sorted([*own, *(others[place] for place in drawn)])

    def _labels_of(self, batch: Mapping[str, Any]) -> Tensor:
        """The labels of the batch, over all processes, without those of rows that are filling."""
        labels = gather_values(batch["labels"])
        return labels if batch.get("valid") is None else labels[gather_values(batch["valid"])]
