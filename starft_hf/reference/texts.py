"""The reference's embeddings of spurious captions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.data.captions import CaptionBank
from starft_hf.data.embedding import TEXTS_PER_CHUNK, Pieces, embed_texts
from starft_hf.models.adapters import base_model_of
from starft_hf.reference.fingerprint import texts_fingerprint
from starft_hf.reference.live import LiveReference
from starft_hf.utils.hashing import digest
from starft_hf.utils.preparation import prepared
from starft_hf.utils.store import FeatureStore


logger = logging.get_logger(__name__)

KIND = "texts"


@dataclass
class CachedTexts:
    """Embeddings of all spurious captions of a bank, by their ids, encoded in advance and cached on disk.

    With `plain`, those of the captions without a spurious template as well. Without a store there are no files.
    """

    bank: CaptionBank
    store: FeatureStore | None
    chunk_size: int = TEXTS_PER_CHUNK
    progress: bool = True
    plain: bool = False

    def __post_init__(self) -> None:
        self.file: Path | None = None
        self.captions_per_second: float | None = None
        self._embeds: Tensor | None = None
        self._row_of_id: Tensor | None = None

    def prepare(self, live: LiveReference, device: torch.device) -> None:
        """Load the features, or compute and store them, every distinct caption once."""
        if self._embeds is None:
            distinct: dict[str, int] = {}
            captions = chain(self.bank.spurious_captions(), self.bank.captions() if self.plain else ())
            ids = [distinct.setdefault(caption, len(distinct)) for caption in captions]
            self._row_of_id = torch.tensor(ids)
            start, forwards = time.perf_counter(), live.forwards
            self._embeds, self.file = embeds_of_texts(
                live, list(distinct), self.store, device, chunk_size=self.chunk_size, progress=self.progress
            )
            if live.forwards > forwards:
                self.captions_per_second = len(distinct) / (time.perf_counter() - start)
                logger.info("Encoded %d captions, %.0f a second.", len(distinct), self.captions_per_second)
        assert self._row_of_id is not None
        self._embeds, self._row_of_id = self._embeds.to(device), self._row_of_id.to(device)

    def rows(self, ids: Tensor) -> Tensor:
        """Unit embeddings `(N, D)` of the spurious captions with these ids."""
        return prepared(self._embeds)[prepared(self._row_of_id)[ids]]

    def plain_rows(self, ids: Tensor) -> Tensor:
        """Those of the plain captions with these ids."""
        return self.rows(ids + self.bank.num_spurious_captions)

    def all_rows(self) -> Tensor:
        """The embeddings of all spurious captions, in the order of their ids."""
        assert self._row_of_id is not None
        return self.rows(torch.arange(self.bank.num_spurious_captions, device=self._row_of_id.device))

    @property
    def size(self) -> tuple[int, int]:
        """Cached rows and bytes."""
        return (0, 0) if self._embeds is None else (len(self._embeds), self._embeds.nbytes)


class LazyTexts:
    """`CachedTexts` of banks too large to be encoded in advance: captions are encoded when a batch first needs them.

    Up to `limit` bytes of embeddings are cached; further captions are encoded again every time.
    """

    file = None
    captions_per_second = None

    def __init__(self, bank: CaptionBank, limit: int):
        self.bank = bank
        self.limit = limit
        self._live: LiveReference | None = None
        self._cached: dict[str, Tensor] = {}
        self._bytes = 0

    def prepare(self, live: LiveReference, device: torch.device) -> None:
        live.prepare(device)
        self._live = live

    def rows(self, ids: Tensor) -> Tensor:
        captions = [self.bank.spurious_caption(*self.bank.parts_of(index)) for index in ids.tolist()]
        missing = list(dict.fromkeys(caption for caption in captions if caption not in self._cached))
        # As exact as those that are encoded in advance.
        with torch.autocast(ids.device.type, enabled=False):
            new = dict(zip(missing, prepared(self._live).embed_texts(missing), strict=True)) if missing else {}
        rows = torch.stack([new[caption] if caption in new else self._cached[caption] for caption in captions])
        for caption, row in new.items():
            if self._bytes + row.nbytes > self.limit:
                break
            # A row of its own: a view would keep the whole chunk alive.
            self._cached[caption] = row.clone()
            self._bytes += row.nbytes
        return rows

    @property
    def size(self) -> tuple[int, int]:
        return len(self._cached), self._bytes


def size_in_gib(model: nn.Module, bank: CaptionBank) -> float:
    """How much memory the embeddings of the spurious captions of a bank take."""
    config: Any = base_model_of(model).config
    width = getattr(config, "projection_dim", None) or config.text_config.hidden_size
    return float(bank.num_spurious_captions * width * 4 / 2**30)


def embeds_of_texts(
    live: LiveReference,
    texts: Sequence[str],
    store: FeatureStore | None,
    device: torch.device,
    *,
    chunk_size: int = TEXTS_PER_CHUNK,
    progress: bool = True,
) -> tuple[Tensor, Path | None]:
    """The reference's unit embeddings `(len(texts), D)` of distinct texts, and the file they are in, if any.

    They are read from the store, or computed by all processes together.
    """

    def encode(pieces: Pieces | None = None) -> Tensor:
        live.prepare(device)
        name = "Reference captions" if progress else None
        return embed_texts(live.embed_texts, texts, chunk_size=chunk_size, progress=name, pieces=pieces)

    if store is None:
        return encode(), None
    key = digest([live.fingerprint, texts_fingerprint(live.encoder, texts)])
    return store.load_or_build(KIND, key, len(texts), device, encode)
