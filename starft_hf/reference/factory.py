"""Which kind of reference a run gets, and what it remembers."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers.utils import logging

from starft_hf.data.captions import CaptionBank
from starft_hf.data.examples import IndexedExamples, image_examples
from starft_hf.data.source import is_fingerprinted, is_stream
from starft_hf.models.adapters import base_model_of, is_adapted
from starft_hf.models.encoder import DualEncoder
from starft_hf.objectives.regularizers import Regularizer
from starft_hf.reference.base import Reference
from starft_hf.reference.cached import CachedReference
from starft_hf.reference.images import CachedImages
from starft_hf.reference.live import AdapterReference, FrozenReference, LiveReference
from starft_hf.reference.store import FeatureStore
from starft_hf.reference.texts import CachedTexts, LazyTexts, TextFeatures


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ReferenceSettings:
    """How the reference of a run computes, and what it caches.

    Attributes:
        cache: "auto", "text", "full" or "none".
        cache_dir: folder of the cached embeddings; None takes the default one.
        cache_dtype: what image embeddings are stored in; None keeps what they were computed in.
        text_cache_gib: above this many GiB, captions are encoded on demand.
        dtype: what a frozen copy computes in; None is the model's own.
        mini_batch_size: images per forward in a step; None takes a batch as a whole.
        batch_size: images per forward while the cache is built.
        num_workers: processes that preprocess images for it.
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
        """Where embeddings are kept between runs."""
        return FeatureStore(self.cache_dir)

    def images(self, examples: IndexedExamples, store: FeatureStore | None) -> CachedImages:
        """The cached embeddings of the images of `examples`."""
        dtype = None if self.cache_dtype is None else getattr(torch, self.cache_dtype)
        return CachedImages(examples, store, self.batch_size, self.num_workers, dtype, self.progress)


@dataclass(frozen=True)
class CachePlan:
    """What a run remembers of its reference, and where.

    Attributes:
        texts: whether to remember the embeddings of spurious captions.
        images: whether to remember those of training images.
        store: the files.
        weights: whether the reference's weights are needed in every step, whatever is remembered.
    """

    texts: bool
    images: bool
    store: FeatureStore
    weights: bool


def plan_cache(
    settings: ReferenceSettings,
    regularizer: Regularizer,
    dataset: Any,
    *,
    finite_captions: bool,
    deterministic_images: bool,
    at_least_an_epoch: bool,
) -> CachePlan:
    """Decide what to remember, before anything expensive is done.

    Args:
        settings: what is asked for.
        regularizer: what looks at the reference.
        dataset: the training set.
        finite_captions: whether captions are made of class names, so that all of them are known in advance.
        deterministic_images: whether preprocessing always gives the same tensors for an image.
        at_least_an_epoch: whether the run uses every image; else "auto" would compute more than it saves.

    Raises:
        ValueError: if the settings ask for something that cannot be remembered, saying why and what to set instead.
    """
    cache, store = settings.cache, settings.store
    if regularizer.columns == "none":
        return CachePlan(texts=False, images=False, store=store, weights=regularizer.needs_weights)
    if cache in ("text", "full") and not finite_captions:
        raise ValueError(
            f"reference_cache={cache!r} remembers the captions of classes, but here captions come from a column or "
            "there are no labels; use reference_cache='auto' or 'none'"
        )
    obstacle = _why_images_cannot_be_cached(dataset, deterministic_images)
    if cache == "full" and obstacle:
        raise ValueError(f"reference_cache='full' remembers one embedding per image, but {obstacle}")
    texts = cache in ("text", "full") or (cache == "auto" and finite_captions)
    images = cache == "full" or (cache == "auto" and not obstacle and at_least_an_epoch)
    return CachePlan(texts, images, store, regularizer.needs_weights)


def _why_images_cannot_be_cached(dataset: Any, deterministic_images: bool) -> str | None:
    if not deterministic_images:
        return (
            "images are cropped or transformed at random, so that no two epochs see the same; set crop_scale=None "
            "and pass no image_transform, or use reference_cache='text'"
        )
    if is_stream(dataset) or not isinstance(dataset, Dataset):
        return (
            f"a {type(dataset).__name__} has no fingerprint that would tell when its images have changed; pass a "
            "datasets.Dataset, or use reference_cache='text'"
        )
    if not is_fingerprinted(dataset):
        return (
            "the data set has a transform of its own, which may be random; apply what is not random with map(), or "
            "use reference_cache='text'"
        )
    return None


def make_live_reference(model: nn.Module, encoder: DualEncoder, settings: ReferenceSettings) -> LiveReference:
    """What computes as `model` does now.

    Args:
        model: the model before fine-tuning.
        encoder: its conventions.
        settings: how it computes.
    """
    if is_adapted(model):
        return AdapterReference(model, encoder, settings.mini_batch_size)
    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    return FrozenReference(model, encoder, dtype, settings.mini_batch_size)


def make_reference(
    live: LiveReference, settings: ReferenceSettings, plan: CachePlan, bank: CaptionBank, examples: Any
) -> Reference:
    """The reference of a run.

    Args:
        live: what computes it.
        settings: how it computes.
        plan: what to remember.
        bank: the captions.
        examples: the training examples.
    """
    texts: TextFeatures | None = None
    if plan.texts:
        texts = CachedTexts(bank, plan.store, progress=settings.progress)
        size, limit = _text_bytes(live.model, bank), settings.text_cache_gib * 2**30
        if size > limit:
            logger.warning(
                "The %d spurious captions of this run would take %.1f GiB as features, more than "
                "reference_text_cache_gib=%g. Captions are encoded when a batch first needs them instead.",
                bank.num_spurious_captions,
                size / 2**30,
                settings.text_cache_gib,
            )
            texts = LazyTexts(bank, int(limit))
    images = None
    if plan.images:
        assert isinstance(examples, IndexedExamples)
        images = settings.images(image_examples(examples), plan.store)
    if texts is None and images is None:
        return live
    return CachedReference(live, texts, images, keep_weights=plan.weights)


def _text_bytes(model: nn.Module, bank: CaptionBank) -> int:
    settings: Any = base_model_of(model).config
    width = getattr(settings, "projection_dim", None) or settings.text_config.hidden_size
    return int(bank.num_spurious_captions * width * 4)
