"""The reference as a frozen copy of the model."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.gradient_cache import forward_in_chunks
from starft_hf.models import DualEncoder, differs_in_training, logit_scale_of
from starft_hf.reference.base import Reference, ReferenceInfo


class FrozenReference(Reference):
    """A frozen copy of a dual encoder.

    Args:
        model: the model as it is now; later changes to it do not reach the copy.
        encoder: its conventions.
        dtype: what the copy computes in; None keeps the model's own.
        chunk_size: images per forward; None takes a batch as a whole.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: DualEncoder,
        dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
    ):
        # The temperature is a matter of the losses, which are never computed in less than float32.
        self._logit_scale = logit_scale_of(model).detach().clone()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.exact = dtype is None
        if dtype is not None:
            self.model.to(dtype)
        self.encoder = encoder
        self.chunk_size = chunk_size
        self.forwards = 0
        self._left = False

    @property
    def logit_scale(self) -> Tensor:
        return self._logit_scale

    @property
    def info(self) -> ReferenceInfo:
        return ReferenceInfo("frozen copy", rows=0, bytes=0, where="nowhere", forwards=self.forwards)

    def prepare(self, device: torch.device) -> None:
        self.model.to(device)
        self._logit_scale = self._logit_scale.to(device)

    def embed(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        images, texts = self._run(lambda: self.encoder.forward(self.model, batch))
        return images, texts[batch["spurious_rows"]]

    def equals(self, model: nn.Module) -> bool:
        # Weights that have moved do not come back: comparing them once per run is enough.
        if not self._left:
            weights = dict(model.named_parameters())
            self._left = (
                not self.exact
                or differs_in_training(model)
                or not all(
                    name in weights and torch.equal(value, weights[name])
                    for name, value in self.model.named_parameters()
                )
            )
        return not self._left

    def embed_images(self, batch: Mapping[str, Any]) -> Tensor:
        """Unit embeddings `(N, D)` of the images of a batch alone."""
        return self._run(lambda: self.encoder.encode(self.model, images=batch))

    def embed_texts(self, texts: Sequence[str] | Mapping[str, Any]) -> Tensor:
        """Unit embeddings `(len(texts), D)` of texts, given as strings or as tensors."""
        return self._run(lambda: self.encoder.encode(self.model, texts=texts))

    def _run(self, compute: Any) -> Any:
        self.forwards += 1
        with torch.inference_mode(), forward_in_chunks(self.model, self.chunk_size):
            outputs = compute()
        # A tensor made in inference mode could not take part in what autograd records.
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(output.clone() for output in outputs)
