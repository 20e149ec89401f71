"""The interface of the frozen reference."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.data.captions import CaptionBank


@dataclass(frozen=True)
class ReferenceInfo:
    """What a reference is and what it has computed so far.

    Attributes:
        kind: "frozen copy", "adapter switched off", "cached texts", "cached images" or "cached texts and images".
        rows: number of cached embeddings.
        bytes: their size.
        where: "nowhere", "memory" or the files they are in.
        forwards: number of forwards of the reference model.
        captions_per_second: how fast captions were encoded in advance; None if none were.
    """

    kind: str
    rows: int
    bytes: int
    where: str
    forwards: int
    captions_per_second: float | None = None


@dataclass(frozen=True)
class ReferenceEmbeds:
    """The reference's unit embeddings of a training batch.

    Attributes:
        images: of its images, `(N, D)`.
        candidates: of its spurious captions, `(M, D)`, in the order of `spurious_rows`: one per row, or one per
            candidate class.
        captions: of the plain captions of its rows, `(N, D)`; None where they would have to be encoded just for this.
    """

    images: Tensor
    candidates: Tensor
    captions: Tensor | None = None


class Reference(ABC):
    """The model before fine-tuning: in eval mode, without gradients, and without touching any random generator.

    Attributes:
        logit_scale: s0, the inverse temperature, already exponentiated: a scalar.
    """

    logit_scale: Tensor

    @property
    @abstractmethod
    def info(self) -> ReferenceInfo:
        """A snapshot of what it has computed."""

    @abstractmethod
    def prepare(self, device: torch.device) -> None:
        """Load or compute whatever is needed before the first step."""

    @abstractmethod
    def embed_batch(self, batch: Mapping[str, Any]) -> ReferenceEmbeds:
        """The embeddings of a training batch."""

    def embed(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Those of its images and of its spurious captions."""
        found = self.embed_batch(batch)
        return found.images, found.candidates

    def embed_captions(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Unit embeddings `(N, D)` of the plain captions of a training batch, if they are cached."""
        return None

    @abstractmethod
    def embed_images(self, batch: Mapping[str, Any]) -> Tensor:
        """Unit embeddings `(N, D)` of the images of a training batch."""

    @abstractmethod
    def contexts(self, bank: CaptionBank) -> Tensor:
        """Unit embeddings of the templates of the bank's pool, `(T, D)`, averaged over classes and captions."""

    @abstractmethod
    def weight_pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of every parameter of `model` and its value in the reference."""

    @abstractmethod
    def equals(self, model: nn.Module) -> bool:
        """Whether `model` in training mode still computes exactly what the reference computes."""

    def __repr__(self) -> str:
        info = self.info
        size = f"{info.rows:,} rows, {info.bytes / 2**20:,.1f} MiB in {info.where}, " if info.rows else ""
        return f"<reference: {info.kind}, {size}{info.forwards} forwards>"
