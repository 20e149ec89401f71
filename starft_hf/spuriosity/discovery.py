"""Discovery: which attributes of images are correlated with the labels of a dataset, by the zero-shot model alone."""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
from torch import nn

from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_columns
from starft_hf.data.decoding import RAISE
from starft_hf.data.source import is_stream
from starft_hf.models.adapters import base_model_of
from starft_hf.models.encoder import DualEncoder, batch_images, unit_rows
from starft_hf.models.loading import load_model, load_processor
from starft_hf.models.modes import evaluation_mode
from starft_hf.models.texts import TextEncoding
from starft_hf.spuriosity.attributes import (
    Attribute,
    attributes_of,
    class_subspace,
    mean_of,
    readable_template,
    without_subspace,
)
from starft_hf.spuriosity.pool import SpuriosityPool, as_pool
from starft_hf.spuriosity.result import DiscoveryResult
from starft_hf.spuriosity.scorer import scorer_from
from starft_hf.spuriosity.settings import SearchSettings
from starft_hf.spuriosity.statistics import measure_associations
from starft_hf.utils.collectives import gather_shards, shard_indices
from starft_hf.utils.names import readable


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
    progress: bool = True,
) -> DiscoveryResult:
    """Find the attributes of images that are correlated with their labels, by a zero-shot model and without groups.

    Every image gets the attribute whose caption, without what distinguishes classes, is most similar to it: one for
    each aspect of the pool, or none where the plain caption is. Templates that mean the same to the model are one
    attribute. The correlation of an attribute with the labels is measured by mutual information, and compared with
    that of permuted labels.

    An attribute that is correlated with a label need not be spurious: the wheels of cars are as well. Check the
    result before relying on it. Only attributes that the pool names are found.

    Args:
        model: a dual encoder before fine-tuning, its Hub id or its path.
        processor: its processor, or None to load it from the source of the model.
        dataset: labeled images; of an iterable dataset the first `max_samples` rows.
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
        seed: of the sample and the permutations.
        batch_size: images per forward.
        num_workers: processes that preprocess.
        on_bad_image: what to do with a row whose image cannot be read: "raise" names it in an error, "skip" excludes
            it and warns.
        progress: whether to show a progress bar.

    Returns:
        The result.

    Raises:
        ValueError: if the dataset has no labels or only one class, or a setting is out of range.
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
        progress=progress,
    )
    pool = as_pool(pool)
    named = ColumnSettings(image_column, label_column, class_names=class_names)
    columns = resolve_columns(dataset, named, what="dataset")
    check_labeled(columns, "dataset")
    model = load_model(model)
    encoder = DualEncoder.of(model, load_processor(base_model_of(model), processor))
    return discover(model, encoder, dataset, columns, pool, settings)


def check_labeled(columns: ImageColumns, what: str) -> None:
    """Check that a dataset has labels and class names.

    Raises:
        ValueError: if not.
    """
    if columns.label is None or columns.class_names is None:
        raise ValueError(
            f"{what} has no labels with class names, so nothing can be correlated with them; set label_column and "
            "class_names, or choose a pool by hand"
        )
    if len(columns.class_names) < 2:
        raise ValueError(f"{what} has one class only ({columns.class_names[0]!r}); there must be at least two")


def _sample(dataset: Any, max_samples: int | None, seed: int) -> tuple[Any, list[int]]:
    """The dataset, or the beginning of an iterable one, and the rows to search, in ascending order."""
    if is_stream(dataset):
        if max_samples is None:
            raise ValueError("dataset is an iterable dataset, whose length is not known; pass max_samples")
        dataset = list(islice(dataset, max_samples))
    if max_samples is None or max_samples >= len(dataset):
        return dataset, list(range(len(dataset)))
    chosen = np.random.default_rng(seed).choice(len(dataset), max_samples, replace=False)
    return dataset, sorted(chosen.tolist())


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


def make_scorer(
    model: nn.Module,
    encoder: DualEncoder,
    class_names: Sequence[str],
    pool: SpuriosityPool,
    caption_templates: Sequence[str],
) -> Scorer:
    """What tells attributes of images: the embeddings of the pool's templates and of the plain captions."""
    embed_texts = partial(_embed_distinct, model, encoder)
    return scorer_from(embed_texts, encoder.encode_texts, class_names, pool, caption_templates)


def scorer_from(
    embed_texts: Callable[[Sequence[str]], Tensor],
    encoding: TextEncoding,
    class_names: Sequence[str],
    pool: SpuriosityPool,
    caption_templates: Sequence[str],
) -> Scorer:
    """The same from what embeds distinct texts, as unit rows `(number of texts, D)` on the CPU, and their encoding."""
    names = list(dict.fromkeys(readable(name) for name in class_names))
    wanted = [[name for name in names if index in pool.eligible(name)] for index in range(len(pool))]
    wanted = [list(_spread(own, _CLASSES_PER_TEMPLATE)) for own in wanted]

    def captions(index: int | None, own: Sequence[str]) -> list[str]:
        spurious = None if index is None else pool[index]
        return [class_caption(name, caption, spurious, encoding) for name in own for caption in caption_templates]

    # The plain captions of every class; then, of all classes and of each half of them, plain captions and templates.
    shown = _spread(names, _CLASSES_PER_TEMPLATE)
    groups = [captions(None, [name]) for name in names]
    for half in (slice(None), slice(None, None, 2), slice(1, None, 2)):
        groups.append(captions(None, shown[half] or shown))
        groups += [captions(index, own[half] or own) for index, own in enumerate(wanted)]
    rows = _means(embed_texts, groups)
    class_embeds, rest = rows[: len(names)], rows[len(names) :].unflatten(0, (3, 1 + len(pool)))
    basis = class_subspace(class_embeds)
    aspects = [aspect or pool.name or "attribute" for aspect in pool.aspects or [None] * len(pool)]
    attributes: list[Attribute] = []
    for aspect in dict.fromkeys(aspects):
        members = [index for index, other in enumerate(aspects) if other == aspect and wanted[index]]
        texts = [readable_template(pool[index]) for index in members]
        attributes += attributes_of(rest[0, 1:][members], rest[0, 0], texts, members, aspect)
    views = [(mean_of(attributes, view[1:]), view[0]) for view in rest]
    whole, *halves = [(without_subspace(embeds, basis), without_subspace(plain, basis)) for embeds, plain in views]
    told = {index for attribute in attributes for index in attribute.templates}
    return Scorer(
        tuple(attributes),
        *whole,
        halves=(halves[0], halves[1]),
        untold=tuple(index for index in range(len(pool)) if wanted[index] and index not in told),
    )


def _spread(items: Sequence[str], number: int) -> Sequence[str]:
    if len(items) <= number:
        return items
    return [items[round(place * (len(items) - 1) / (number - 1))] for place in range(number)]


def _means(embed_texts: Callable[[Sequence[str]], Tensor], groups: Sequence[Sequence[str]]) -> Tensor:
    """One unit row per group of texts, the mean of theirs, `(len(groups), D)`; zeros for a group without texts."""
    distinct = list(dict.fromkeys(text for texts in groups for text in texts))
    embeds = embed_texts(distinct)
    row_of = {text: row for row, text in enumerate(distinct)}
    return unit_rows(torch.stack([embeds[[row_of[text] for text in texts]].sum(0) for texts in groups]))


def _embed_distinct(model: nn.Module, encoder: DualEncoder, distinct: Sequence[str]) -> Tensor:
    # In alphabetical order, texts that begin alike share a chunk, and what they begin with where the tower can.
    order = sorted(range(len(distinct)), key=lambda index: distinct[index])
    mine = [distinct[order[place]] for place in shard_indices(len(order))]
    with evaluation_mode(model):
        chunks = [
            encoder.encode(model, texts=mine[start : start + _TEXTS_AT_ONCE])
            for start in range(0, len(mine), _TEXTS_AT_ONCE)
        ]
        share = torch.cat(chunks) if chunks else encoder.encode(model, texts=distinct[:1])[:0]
    embeds = gather_shards(share, len(order)).float().cpu()
    return torch.empty_like(embeds).index_copy_(0, torch.tensor(order), embeds)


def embed_images(
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    indices: Sequence[int],
    columns: ImageColumns,
    *,
    batch_size: int,
    num_workers: int,
    on_bad_image: str,
    progress: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit embeddings `(N, D)` and labels `(N,)` of rows of a data set, and which of them could be read, `(N,)`.

    Processes share the work and get all of it.
    """
    maker = EvaluationExampleMaker(replace(columns, groups=None), ImagePreprocessor(encoder.image_processor))
    examples = IndexedExamples(dataset, maker, on_bad_image)
    mine = [indices[place] for place in shard_indices(len(indices))]
    loader = DataLoader(
        Subset(examples, mine or indices[:1]),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=StarFTCollator(encoder.encode_texts),
        # A loader draws a seed for its workers; from a generator of its own, it leaves the global one alone.
        generator=torch.Generator(),
    )
    device = next(model.parameters()).device
    skipped = SkippedImages()
    embeds, labels, known = [], [], []
    with (
        evaluation_mode(model),
        tqdm(total=len(mine), desc="Looking for spuriosity", unit=" images", disable=not progress) as bar,
    ):
        for batch in loader:
            skipped.note(batch)
            moved = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            embeds.append(encoder.encode(model, images=batch_images(moved)))
            labels.append(moved["labels"])
            known.append(moved.get("valid", torch.ones_like(moved["labels"], dtype=torch.bool)))
            bar.update(len(moved["labels"]))
    # Of a process that has nothing to do, one image gives the shapes.
    share = [torch.cat(parts)[: len(mine)] for parts in (embeds, labels, known)]
    rows, numbers, is_known = (gather_shards(part, len(indices)).cpu() for part in share)
    return rows.float(), numbers, is_known
