"""The reference with the embeddings of its spurious captions remembered."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from starft_hf.data.captions import CaptionBank
from starft_hf.reference.base import Reference, ReferenceInfo
from starft_hf.reference.frozen import FrozenReference


class TextCachedReference(Reference):
    """A frozen reference whose text tower runs once: every spurious caption of every class is encoded in advance.

    Args:
        reference: the frozen copy that does the encoding.
        bank: the captions; the batch names them by their ids in it.
        chunk_size: texts per forward.
        progress: whether to show a progress bar.
    """

    def __init__(self, reference: FrozenReference, bank: CaptionBank, chunk_size: int = 256, progress: bool = True):
        self.reference = reference
        self.bank = bank
        self.chunk_size = chunk_size
        self.progress = progress
        self._embeds: Tensor | None = None
        self._row_of_id: Tensor | None = None

    @property
    def logit_scale(self) -> Tensor:
        return self.reference.logit_scale

    @property
    def info(self) -> ReferenceInfo:
        rows, size = (0, 0) if self._embeds is None else (len(self._embeds), self._embeds.nbytes)
        return ReferenceInfo("cached texts", rows, size, where="memory", forwards=self.reference.forwards)

    def prepare(self, device: torch.device) -> None:
        self.reference.prepare(device)
        if self._embeds is None:
            captions = list(self.bank.spurious_captions())
            rows: dict[str, int] = {}
            self._row_of_id = torch.tensor([rows.setdefault(caption, len(rows)) for caption in captions])
            self._embeds = self._encode(list(rows))
        assert self._row_of_id is not None
        self._embeds, self._row_of_id = self._embeds.to(device), self._row_of_id.to(device)

    def _encode(self, texts: list[str]) -> Tensor:
        chunks = []
        with tqdm(total=len(texts), desc="Reference captions", unit="caption", disable=not self.progress) as bar:
            for start in range(0, len(texts), self.chunk_size):
                chunk = texts[start : start + self.chunk_size]
                chunks.append(self.reference.embed_texts(chunk))
                bar.update(len(chunk))
        return torch.cat(chunks)

    def equals(self, model: nn.Module) -> bool:
        return self.reference.equals(model)

    def embed(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        assert self._embeds is not None
        assert self._row_of_id is not None
        return self.reference.embed_images(batch), self._embeds[self._row_of_id[batch["spurious_ids"]]]
