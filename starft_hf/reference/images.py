"""The reference's embeddings of the training images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from starft_hf.data.decoding import SKIP
from starft_hf.data.embedding import Pieces, embed_images
from starft_hf.data.examples import IndexedExamples
from starft_hf.data.fingerprint import images_fingerprint, preprocessing_fingerprint
from starft_hf.reference.live import LiveReference
from starft_hf.utils.hashing import digest
from starft_hf.utils.preparation import prepared
from starft_hf.utils.store import FeatureStore


KIND = "images"

# Features up to this size are moved to the device; larger ones stay memory-mapped and are read batch by batch.
_BYTES_ON_DEVICE = 2**30


@dataclass
class CachedImages:
    """Embeddings of all images of a dataset, by sample index, computed in one pass and cached on disk.

    Without a store, features are kept in memory only. Their dtype is that of the embeddings unless `dtype` is set;
    float16 halves their size and rounds every entry of the unit rows by at most 2**-12.
    """

    examples: IndexedExamples
    store: FeatureStore | None
    batch_size: int = 64
    num_workers: int = 0
    dtype: torch.dtype | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        self._embeds: Tensor | None = None
        self._dtype = torch.float32
        self.file: Path | None = None

    def prepare(self, live: LiveReference, device: torch.device) -> None:
        """Load the features, or compute and store them."""
        skips = self.examples.on_bad_image == SKIP
        if self._embeds is None and self.store is None:
            self._embeds = self._encode(live, device)
        elif self._embeds is None and self.store is not None:
            cache = self.examples.cache
            depends_on = [
                live.fingerprint,
                preprocessing_fingerprint(live.encoder.image_processor, self.examples.make.preprocessor.decoding),
                images_fingerprint(self.examples.dataset, self.examples.columns.image),
                str(self.dtype),
                # Images that are kept for random crops are resized twice.
                *([] if cache is None or cache.is_final else [cache.key]),
            ]
            # Only with "skip" can there be rows of zeros.
            key = digest([*depends_on, SKIP] if skips else depends_on)
            self._embeds, self.file = self.store.load_or_build(
                KIND,
                key,
                len(self.examples),
                device,
                lambda pieces: self._encode(live, device, pieces),
                self._is_up_to_date,
            )
        assert self._embeds is not None
        if skips:
            self.examples.unreadable.update(_unreadable(self._embeds))
        self._dtype = torch.promote_types(live.logit_scale.dtype, torch.float32)
        if self._embeds.nbytes <= _BYTES_ON_DEVICE:
            self._embeds = self._embeds.to(device)

    def _is_up_to_date(self, embeds: Tensor) -> bool:
        """Whether images that could not be read when the features were computed still cannot be."""
        return not any(self.examples.is_readable(index) for index in _unreadable(embeds))

    def _encode(self, live: LiveReference, device: torch.device, pieces: Pieces | None = None) -> Tensor:
        live.prepare(device)

        def embed(batch: dict[str, Tensor]) -> tuple[Tensor]:
            rows = live.embed_images(batch)
            if "valid" in batch:
                # A row of zeros marks an image that could not be read.
                rows = rows.masked_fill(~batch["valid"][:, None], 0)
            return (rows.to(self.dtype or rows.dtype),)

        return embed_images(
            embed,
            self.examples,
            range(len(self.examples)),
            device,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            progress="Reference images" if self.progress else None,
            pieces=pieces,
        )[0]

    def rows(self, samples: Tensor) -> Tensor:
        """Unit embeddings `(N, D)` of the images with these sample indices, in the dtype of the losses."""
        embeds = prepared(self._embeds)
        return embeds[samples.to(embeds.device)].to(samples.device, self._dtype)

    def all_rows(self) -> Tensor:
        """The embeddings of all images, in the order of their indices."""
        assert self._embeds is not None
        return self._embeds

    @property
    def size(self) -> tuple[int, int]:
        """Cached rows and bytes."""
        return (0, 0) if self._embeds is None else (len(self._embeds), self._embeds.nbytes)


def _unreadable(embeds: Tensor) -> list[int]:
    """Samples whose images could not be read when their features were computed."""
    return (embeds == 0).all(-1).nonzero().flatten().tolist()
