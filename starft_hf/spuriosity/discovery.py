"""Discovery: which attributes of images are correlated with the labels of a dataset, by the zero-shot model alone."""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
from torch import nn
from transformers.utils import logging

from starft_hf.data.captions import CAPTION_FIELD, CLASS_FIELD, check_class_prompts
from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_columns
from starft_hf.data.decoding import RAISE
from starft_hf.data.image_cache import given_image_cache
from starft_hf.data.images import SCALED
from starft_hf.data.shuffling import Shuffle
from starft_hf.data.source import is_iterable
from starft_hf.models.encoder import DualEncoder
from starft_hf.spuriosity.embedding import embed_images, embed_texts, load_encoder
from starft_hf.spuriosity.pool import SpuriosityPool, as_pool
from starft_hf.spuriosity.result import DiscoveryResult
from starft_hf.spuriosity.scorer import scorer_from
from starft_hf.spuriosity.settings import SearchSettings
from starft_hf.spuriosity.statistics import measure_associations
from starft_hf.utils.collectives import rank
from starft_hf.utils.names import readable


logger = logging.get_logger(__name__)


def discover_spuriosity(
    model: str | PathLike[str] | nn.Module,
    processor: Any,
    dataset: Any,
    pool: SpuriosityPool | str | PathLike[str] | Sequence[str] = "all",
    *,
    class_names: Sequence[str] | None = None,
    caption_template: str | Sequence[str] = "a photo of a {}.",
    image_column: str = "image",
    label_column: str = "label",
    alpha: float = 0.01,
    min_effect: float = 0.05,
    min_agreement: float = 0.8,
    permutations: int = 1000,
    max_samples: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: str = RAISE,
    image_decoding: str = SCALED,
    image_cache: str | PathLike[str] | bool | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> DiscoveryResult:
    """Find attributes of images that are correlated with their labels, by a zero-shot model and without group labels.

    Every image gets the attribute whose caption, without what distinguishes classes, is most similar to it: one for
    each aspect of the pool, or none where the plain caption is. Templates that mean the same to the model are one
    attribute. The correlation of an attribute with the labels is measured by mutual information, and compared with
    that of permuted labels.

    Templates with words that the tokenizer of the model does not know are excluded, with a warning. Those that hardly
    change a caption, compared with the other templates and with class names, are excluded too, and named in the table.

    The p-values are of independence: nothing is found in more than `alpha` of datasets whose labels are unrelated
    to the images. Where something is correlated with the labels, whatever the model confuses with it is as well: an
    attribute that is found may name another one that no template names, such as a tint of all colors.

    An attribute that is correlated with a label need not be spurious: the wheels of cars are as well. Check the
    result before relying on it. Only attributes that the pool names are found.

    Args:
        model: a dual encoder before fine-tuning, its Hub id or its path.
        processor: its processor, or None to load it from the source of the model.
        dataset: labeled images; of an iterable dataset `max_samples` of its rows, shuffled with a buffer of as many.
        pool: the candidate attributes: what `StarFTTrainer(spuriosity=...)` takes.
        class_names: names of the classes in label order; None reads them from the dataset.
        caption_template: the plain caption, with `{}` for the class name, or several.
        image_column: column with the images.
        label_column: column with the labels.
        alpha: an attribute is found if its p-value, corrected for the number of attributes, is no larger,
        min_effect: and if some label's images have it this much more or less often than others, as a fraction,
        min_agreement: and if captions of one half of the classes and of the other agree this much on which images
            have it, as Cohen's kappa. Below, the model responds to class names rather than to what it sees.
        permutations: number of permutations of the labels, for the p-values.
        max_samples: largest number of images, drawn at random; None uses all.
        seed: seed of the sample and the permutations.
        batch_size: images per forward.
        num_workers: processes that preprocess.
        on_bad_image: "raise" an error that names a row whose image cannot be read, or "skip" it with a warning.
        image_decoding: "scaled" decodes an image at no more than the size that resizing it well takes, "full" in full.
        image_cache: "auto" or True, for `starft` under HF_HOME, or a folder: what the model gets of all images of the
            dataset is kept there for further runs. None keeps nothing.
        trust_remote_code: whether to run code that comes with a model whose classes transformers does not have.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the dataset has no labels or only one class, a setting is out of range, or the tokenizer knows
            the words of no template.
    """
    settings = SearchSettings(
        caption_templates=[caption_template] if isinstance(caption_template, str) else list(caption_template),
        alpha=alpha,
        min_effect=min_effect,
        min_agreement=min_agreement,
        permutations=permutations,
        max_samples=max_samples,
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
        on_bad_image=on_bad_image,
        image_decoding=image_decoding,
        image_cache=given_image_cache(image_cache, dataset, num_workers, progress),
        progress=progress,
    )
    if max_samples is None and is_iterable(dataset):
        raise ValueError("dataset is an iterable dataset, whose length is not known; pass max_samples")
    pool = as_pool(pool)
    named = ColumnSettings(image_column, label_column, class_names=class_names)
    columns = resolve_columns(dataset, named, what="dataset")
    check_labeled(columns, "dataset")
    return discover(
        *load_encoder(model, processor, trust_remote_code=trust_remote_code), dataset, columns, pool, settings
    )


def check_labeled(columns: ImageColumns, what: str) -> None:
    """Check that a dataset has labels and at least two class names."""
    if columns.label is None or columns.class_names is None:
        raise ValueError(
            f"{what} has no labels with class names, so nothing can be correlated with them; set label_column and "
            "class_names, or choose a pool"
        )
    if len(columns.class_names) < 2:
        raise ValueError(f"{what} has one class only ({columns.class_names[0]!r}); there must be at least two")


def _sample(dataset: Any, max_samples: int | None, seed: int) -> tuple[Any, list[int]]:
    """The dataset, or rows from the beginning of an iterable one, and the rows to search, in ascending order."""
    if is_iterable(dataset):
        # Those of a folder are sorted by class.
        dataset = list(islice(Shuffle(seed, max_samples or 0).rows(dataset, 0), max_samples))
    if max_samples is None or max_samples >= len(dataset):
        return dataset, list(range(len(dataset)))
    chosen = np.random.default_rng(seed).choice(len(dataset), max_samples, replace=False)
    return dataset, sorted(chosen.tolist())


def unknown_templates(pool: SpuriosityPool, encoder: DualEncoder) -> list[int]:
    """The indices of templates with words that the tokenizer does not know; a warning of them, if there are some."""
    texts = [template.replace(CLASS_FIELD, "").replace(CAPTION_FIELD, "") for template in pool]
    unknown = [index for index, text in enumerate(texts) if not encoder.encode_texts.knows(text)]
    if unknown and rank() == 0:
        logger.warning_once(
            f"{len(unknown)} of the {len(pool)} templates of the spuriosity pool have words that the tokenizer does "
            f"not know, such as {pool[unknown[0]]!r}, so the model cannot distinguish them. Choose a pool with words "
            "that it knows."
        )
    return unknown


def _understood(pool: SpuriosityPool, encoder: DualEncoder) -> SpuriosityPool:
    unknown = set(unknown_templates(pool, encoder))
    if len(unknown) == len(pool):
        raise ValueError(
            f"the tokenizer does not know words of any template of the pool, such as {pool[0]!r}; pass a pool whose "
            "words it knows"
        )
    return pool.only([index for index in range(len(pool)) if index not in unknown]) if unknown else pool


def discover(
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns,
    pool: SpuriosityPool,
    settings: SearchSettings,
) -> DiscoveryResult:
    """`discover_spuriosity` of a loaded model. Several processes share the work."""
    class_names = columns.class_names or ()
    pool = _understood(pool, encoder)
    check_class_prompts(class_names, settings.caption_templates, encoder.encode_texts)
    dataset, indices = _sample(dataset, settings.max_samples, settings.seed)
    embed = partial(embed_texts, model, encoder)
    scorer = scorer_from(embed, encoder.encode_texts, class_names, pool, settings.caption_templates)
    embeds, labels, is_valid = embed_images(model, encoder, dataset, indices, columns, settings)
    embeds, labels = embeds[is_valid], labels[is_valid]
    if len(set(labels.tolist())) < 2:
        raise ValueError(f"the {len(labels)} images that were searched are of one class; search more of them")
    assigned = scorer(embeds)
    associations = measure_associations(
        labels.numpy(),
        list(assigned.values()),
        len(class_names),
        len(scorer.attributes),
        permutations=settings.permutations,
        seed=settings.seed,
    )
    return DiscoveryResult(
        class_names=tuple(readable(name) for name in class_names),
        candidates=pool,
        scorer=scorer,
        associations=associations,
        agreement=scorer.agreement(embeds),
        settings=settings,
        dataset=dataset,
        columns=columns,
        indices=tuple(index for index, valid in zip(indices, is_valid.tolist(), strict=True) if valid),
        labels=labels.numpy(),
        assigned=assigned,
    )
