"""The reference as a frozen copy of the model."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.models import DualEncoder, differs_in_training, logit_scale_of
from starft_hf.reference.base import Reference, ReferenceInfo


class FrozenReference(Reference):
    """A frozen copy of a dual encoder.

    Args:
        model: the model as it is now; later changes to it do not reach the copy.
        encoder: its conventions.
    """

    def __init__(self, model: nn.Module, encoder: DualEncoder):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.encoder = encoder
        self.forwards = 0
        self._left = False

    @property
    def logit_scale(self) -> Tensor:
        return logit_scale_of(self.model)

    @property
    def info(self) -> ReferenceInfo:
        return ReferenceInfo("frozen copy", rows=0, bytes=0, where="nowhere", forwards=self.forwards)

    def prepare(self, device: torch.device) -> None:
        self.model.to(device)

    def embed(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        images, texts = self._forward(batch)
        return images, texts[batch["spurious_rows"]]

    def equals(self, model: nn.Module) -> bool:
        # Weights that have moved do not come back: comparing them once per run is enough.
        if not self._left:
            weights = dict(model.named_parameters())
            self._left = differs_in_training(model) or not all(
                name in weights and torch.equal(value, weights[name]) for name, value in self.model.named_parameters()
            )
        return not self._left

    @torch.no_grad()
    def embed_images(self, batch: Mapping[str, Any]) -> Tensor:
        """Unit embeddings `(N, D)` of the images of a batch alone."""
        self.forwards += 1
        return self.encoder.encode(self.model, images=batch_images(batch))

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings `(len(texts), D)` of texts."""
        self.forwards += 1
        return self.encoder.encode(self.model, texts=texts)

    @torch.no_grad()
    def _forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        self.forwards += 1
        return self.encoder.forward(self.model, batch)


def batch_images(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the forward that belong to the images of a batch."""
    return {name: value for name, value in batch.items() if name not in TEXT_ARGUMENTS}


TEXT_ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
