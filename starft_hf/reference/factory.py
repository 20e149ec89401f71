"""Which kind of reference a run gets, and what of it is cached."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers.utils import logging

from starft_hf.data.captions import CaptionBank
from starft_hf.data.examples import IndexedExamples, image_examples
from starft_hf.data.source import is_fingerprinted
from starft_hf.models.adapters import is_adapted
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference.base import Reference
from starft_hf.reference.cached import CachedReference
from starft_hf.reference.images import CachedImages
from starft_hf.reference.live import AdapterReference, FrozenReference, LiveReference
from starft_hf.reference.texts import CachedTexts, LazyTexts, size_in_gib
from starft_hf.utils.store import FeatureStore


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ReferenceSettings:
    """How the reference of a run computes, and what is cached.

    Attributes:
        cache: "auto", "text", "full" or "none".
        cache_dir: folder of the cached embeddings; None is the default one.
        cache_dtype: dtype of cached image embeddings; None stores them as they were computed.
        text_cache_gib: above this many GiB, captions are encoded on demand.
        dtype: dtype of a frozen copy; None is the model's own.
        mini_batch_size: images per forward in a step; None runs a batch at once.
        batch_size: images per forward while the cache is built.
        num_workers: processes that preprocess images while the cache is built.
        progress: whether to show progress bars.
    """

    cache: str = "auto"
    cache_dir: str | None = None
    cache_dtype: str | None = None
    text_cache_gib: float = 1.0
    dtype: str | None = None
    mini_batch_size: int | None = None
    batch_size: int = 64
    num_workers: int = 0
    progress: bool = True

    @property
    def store(self) -> FeatureStore:
        """The files of cached embeddings."""
        return FeatureStore(self.cache_dir)

    def images(self, examples: IndexedExamples, store: FeatureStore | None) -> CachedImages:
        """The cached embeddings of the images of `examples`."""
        dtype = None if self.cache_dtype is None else getattr(torch, self.cache_dtype)
        return CachedImages(examples, store, self.batch_size, self.num_workers, dtype, self.progress)


@dataclass(frozen=True)
class CachePlan:
    """What a run caches of its reference, and where.

    Attributes:
        texts: whether to cache the embeddings of spurious captions.
        images: whether to cache the embeddings of training images.
        store: the files.
        weights: whether to keep the reference's weights in memory, whatever is cached.
    """

    texts: bool
    images: bool
    store: FeatureStore
    weights: bool


def plan_cache(
    settings: ReferenceSettings,
    dataset: Any,
    *,
    needs_embeddings: bool,
    needs_weights: bool,
    finite_captions: bool,
    deterministic_images: bool,
    at_least_an_epoch: bool,
) -> CachePlan:
    """Decide what to cache, before anything expensive is done.

    Args:
        settings: what the user asks for.
        dataset: the training set.
        needs_embeddings: whether the regularizer compares with the reference's embeddings.
        needs_weights: whether it compares with the reference's weights.
        finite_captions: whether what is compared is made of class names, so that all of it is known in advance.
        deterministic_images: whether preprocessing always gives the same tensors for an image.
        at_least_an_epoch: whether the run uses every image; otherwise "auto" would compute more than it saves.

    Raises:
        ValueError: if the settings ask for something that cannot be cached, saying why and what to set instead.
    """
    cache, store = settings.cache, settings.store
    if not needs_embeddings:
        return CachePlan(texts=False, images=False, store=store, weights=needs_weights)
    if cache in ("text", "full") and not finite_captions:
        raise ValueError(
            f"reference_cache={cache!r} caches captions of classes, but there are no labels, or captions come from a "
            "column; use reference_cache='auto' or 'none'"
        )
    obstacle = _why_images_cannot_be_cached(dataset, deterministic_images)
    if cache == "full" and obstacle:
        raise ValueError(f"reference_cache='full' caches one embedding per image, but {obstacle}")
    texts = cache in ("text", "full") or (cache == "auto" and finite_captions)
    images = cache == "full" or (cache == "auto" and not obstacle and at_least_an_epoch)
    return CachePlan(texts, images, store, needs_weights)


def _why_images_cannot_be_cached(dataset: Any, deterministic_images: bool) -> str | None:
    if not deterministic_images:
        return (
            "images are cropped or transformed at random, differently in every epoch; set crop_scale=None and pass no "
            "image_transform, or use reference_cache='text'"
        )
    if not isinstance(dataset, Dataset):
        return (
            f"the dataset, of type {type(dataset).__name__}, has no fingerprint that changes with its images; pass a "
            "datasets.Dataset, or use reference_cache='text'"
        )
    if not is_fingerprinted(dataset):
        return "the dataset has a transform, which may be random; use map() if it is not, or reference_cache='text'"
    return None


def make_live_reference(model: nn.Module, encoder: DualEncoder, settings: ReferenceSettings) -> LiveReference:
    """A reference that computes what `model`, before fine-tuning and with the spec `encoder`, computes now."""
    if is_adapted(model):
        return AdapterReference(model, encoder, settings.mini_batch_size)
    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    return FrozenReference(model, encoder, dtype, settings.mini_batch_size)


def make_reference(
    live: LiveReference, settings: ReferenceSettings, plan: CachePlan, bank: CaptionBank, examples: Any
) -> Reference:
    """The reference of a run: `live`, with the embeddings of `bank` and of training `examples` cached as planned."""
    if not plan.texts and not plan.images:
        return live
    images = settings.images(image_examples(examples), plan.store) if plan.images else None
    texts: CachedTexts | LazyTexts | None = None
    if plan.texts:
        if (gib := size_in_gib(live.model, bank)) <= settings.text_cache_gib:
            texts = CachedTexts(bank, plan.store, progress=settings.progress, plain=True)
        else:
            logger.warning(
                "The %d spurious captions of this run would take %.1f GiB as features, more than "
                "reference_text_cache_gib=%g. Captions are encoded when a batch first needs them instead.",
                bank.num_spurious_captions,
                gib,
                settings.text_cache_gib,
            )
            texts = LazyTexts(bank, int(settings.text_cache_gib * 2**30))
    return CachedReference(live, texts, images, keep_weights=plan.weights)
