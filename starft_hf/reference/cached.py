"""The reference as cached embeddings."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.data.captions import CaptionBank
from starft_hf.models.encoder import batch_images, batch_texts
from starft_hf.models.fsdp import full_tensor
from starft_hf.models.modes import differs_in_training
from starft_hf.reference.base import Reference, ReferenceEmbeds, ReferenceInfo
from starft_hf.reference.images import CachedImages
from starft_hf.reference.live import FrozenReference, LiveReference, mean_over_classes, rows_of_texts
from starft_hf.reference.texts import CachedTexts, LazyTexts
from starft_hf.utils.hashing import tensors_digest


class CachedReference(Reference):
    """A frozen reference with cached embeddings of captions, of images or of both.

    With both cached in full, a frozen copy is released before the first step.

    Args:
        live: computes what is not cached.
        texts: the captions' embeddings, or None to compute them in every step.
        images: the images' embeddings, or None to compute them in every step.
        keep_weights: keep the weights of a frozen copy even if all embeddings are cached.
    """

    def __init__(
        self,
        live: LiveReference,
        texts: CachedTexts | LazyTexts | None,
        images: CachedImages | None,
        keep_weights: bool = False,
    ):
        self._keep_weights = keep_weights
        self.live: LiveReference | None = live
        self.texts = texts
        self.images = images
        self.logit_scale = live.logit_scale
        self._forwards = 0
        self._contexts: Tensor | None = None
        self._weights: tuple[frozenset[str], str] | None = None

    @property
    def info(self) -> ReferenceInfo:
        parts = {name: part for name, part in (("texts", self.texts), ("images", self.images)) if part is not None}
        rows, size = (sum(part.size[index] for part in parts.values()) for index in (0, 1))
        files = [str(part.file) for part in parts.values() if part.file is not None]
        where = ", ".join(files) if len(files) == len(parts) else ", ".join([*files, "memory"])
        forwards = self._forwards if self.live is None else self.live.forwards
        rate = None if self.texts is None else self.texts.captions_per_second
        return ReferenceInfo(f"cached {' and '.join(parts)}", rows, size, where, forwards, rate)

    def prepare(self, device: torch.device) -> None:
        self.logit_scale = self.logit_scale.to(device)
        live = self.live
        if live is None:
            return
        for part in (self.texts, self.images):
            if part is not None:
                part.prepare(live, device)
        all_cached = isinstance(self.texts, CachedTexts) and self.images is not None
        if not all_cached or self._keep_weights:
            live.prepare(device)
        elif isinstance(live, FrozenReference):
            if live.exact:
                parameters = {name: value.flatten() for name, value in live.model.named_parameters()}
                self._weights = frozenset(parameters), tensors_digest(parameters)
            self._forwards = live.forwards
            self.live = None

    def embed_batch(self, batch: Mapping[str, Any]) -> ReferenceEmbeds:
        images = self.embed_images(batch)
        if self.texts is not None:
            return ReferenceEmbeds(images, self.texts.rows(batch["spurious_ids"]), self.embed_captions(batch))
        assert self.live is not None
        return ReferenceEmbeds(images, *rows_of_texts(self.live.embed_texts(batch_texts(batch)), batch))

    def embed_captions(self, batch: Mapping[str, Any]) -> Tensor | None:
        if not isinstance(self.texts, CachedTexts) or not self.texts.plain or "caption_ids" not in batch:
            return None
        return self.texts.plain_rows(batch["caption_ids"])

    def embed_images(self, batch: Mapping[str, Any]) -> Tensor:
        if self.images is not None:
            return self.images.rows(batch["sample_index"])
        assert self.live is not None
        return self.live.embed_images(batch_images(batch))

    def contexts(self, bank: CaptionBank) -> Tensor:
        if isinstance(self.texts, CachedTexts):
            if self._contexts is None:
                self._contexts = mean_over_classes(self.texts.all_rows(), bank)
            return self._contexts
        assert self.live is not None
        return self.live.contexts(bank)

    def weight_pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.live is not None
        return self.live.weight_pairs(model)

    def equals(self, model: nn.Module) -> bool:
        if self.live is not None:
            return self.live.equals(model)
        # Weights that have changed do not change back, so the first difference settles it.
        if self._weights is not None and not differs_in_training(model):
            names, weights = self._weights
            parameters = {
                name: full_tensor(value).flatten() for name, value in model.named_parameters() if name in names
            }
            if len(parameters) == len(names) and tensors_digest(parameters) == weights:
                return True
        self._weights = None
        return False
