"""The captions of all classes, which every image of a batch is compared with where an image may have several."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from starft_hf.data.captions import CaptionBank
from starft_hf.data.collator import encode_rows
from starft_hf.data.randomness import Draw, batch_generator
from starft_hf.models.texts import TextEncoding


@dataclass(frozen=True)
class ClassTexts:
    """Adds the captions of all classes to a batch, under one caption template that all processes share.

    Without `encode_texts` all embeddings are known by the ids of captions, and there are no tokens.
    """

    bank: CaptionBank
    encode_texts: TextEncoding | None
    seed: int

    def __call__(self, batch: Mapping[str, Any], step: int, part: int) -> dict[str, Any]:
        """The batch with `class_rows` and `class_ids`, `(C,)`, and the rows of its `spurious_captions`, if it has any.

        `part` is the place of the batch among those whose gradients the optimizer step accumulates.
        """
        generator = batch_generator(self.seed, step, part, Draw.SHARED_CAPTION_TEMPLATE)
        template = int(generator.integers(len(self.bank.caption_templates)))
        labels = range(len(self.bank.class_names))
        texts = {"class_rows": [self.bank.caption(label, template) for label in labels]}
        if "spurious_captions" in batch:
            texts["spurious_rows"] = batch["spurious_captions"]
        elif "spurious_rows" in batch:
            raise ValueError(
                "the batch has spurious_rows, but with base_loss='multi_label' the step encodes all texts; let the "
                "data collator return them as 'spurious_captions', as StarFTCollator(encode_captions=False) does"
            )
        device = batch["pixel_values"].device
        kept = {name: value for name, value in batch.items() if name != "spurious_captions"}
        kept["class_ids"] = torch.tensor([self.bank.caption_id(label, template) for label in labels], device=device)
        return kept | {name: value.to(device) for name, value in encode_rows(texts, self.encode_texts).items()}
