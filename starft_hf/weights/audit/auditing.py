"""`audit`: what a fine-tuned model has forgotten, what it leans on, and shortcuts that nobody named."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.data.decoding import RAISE, check_on_bad_image
from starft_hf.data.groups import GroupFunction
from starft_hf.data.image_cache import given_image_cache
from starft_hf.data.images import SCALED, check_image_decoding
from starft_hf.reference.factory import ReferenceSettings
from starft_hf.report.audit import AuditResult
from starft_hf.spuriosity.auto import Spuriosity
from starft_hf.spuriosity.correlates import CorrelateSettings, Looked, find_correlates
from starft_hf.spuriosity.discovery import unknown_templates
from starft_hf.spuriosity.pool import as_pool
from starft_hf.spuriosity.properties import measure_images
from starft_hf.spuriosity.vocabulary import TOKENIZER, Vocabulary, given_words, has_lexicon, usable_words
from starft_hf.utils.text import without_paths
from starft_hf.weights.audit.measuring import (
    Tower,
    compare_words,
    compared,
    measure_forgotten,
    measure_retention,
    measure_sensitivity,
    named_groups,
    worst_accuracy,
)
from starft_hf.weights.repair.embedding import Embedder, ImageReading, seen_in_words, targets
from starft_hf.weights.repair.groups import indices_of, pseudo_groups
from starft_hf.weights.repair.repairing import check_validation_set
from starft_hf.weights.repair.subject import Subject, columns_for, describe, load_subject


BY_COLUMN, BY_PSEUDO_GROUPS, BY_CLASS = "group_column", "pseudo_groups", "classes"

# For a model whose record names no pool.
_DEFAULT_POOL = "background"


def audit(
    tuned: str | PathLike[str] | nn.Module,
    start: str | PathLike[str] | nn.Module | None = None,
    dataset: Any = None,
    *,
    processor: Any = None,
    retention: Mapping[str, Any] | None = None,
    spuriosity: Spuriosity | None = None,
    vocabulary: Vocabulary | None = TOKENIZER,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | str | None = None,
    group_column: str | Sequence[str] | None = None,
    group_function: GroupFunction | None = None,
    image_column: str = "image",
    label_column: str = "label",
    alpha: float = 0.05,
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: str = RAISE,
    image_decoding: str = SCALED,
    image_cache: str | PathLike[str] | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> AuditResult:
    """Audit a fine-tuned model on labeled images: what it has forgotten, what it leans on, and hidden shortcuts.

    Groups: the accuracy and calibration in every group, with bootstrap intervals. Without a group column, groups are
    combinations of class and of what the start sees of the pool's templates in an image.

    Forgotten: how far the similarities of texts have moved, how many answers have changed, and the accuracy on
    datasets of other tasks.

    Sensitivity: how much classes attract images of other classes that look like what a template of the pool says, and
    how much answers move if all captions gain the template, for the model and its start.

    Correlates: which words of a vocabulary, and which properties of images and files (brightness, contrast, sharpness,
    colorfulness, size, aspect, border, JPEG quality, file type, folder, camera, month), labels are correlated with,
    and mistakes on images of one class. Of datasets without any correlation, no more than `alpha` give one.
    A correlate need not be a shortcut: wolves have fur. Check it before relying on it.

    The score is from 0 to 1 and takes no group labels: the accuracy in the worst combination of class and of what the
    start sees of the pool in an image, times 1 less the largest gain of a class's attraction over the start (without a
    start, less the largest attraction). It estimates how the model does where its shortcuts fail, as far as the images
    have such cases and the pool names them. Compare only scores on the same images, pool and start.

    Args:
        tuned: a dual encoder: a folder or Hub id of a full model, of one with a head or of an adapter, or a model in
            memory; trained here or not. It is not changed.
        start: the model before fine-tuning; None: the base model of an adapter, or the one that the model's record
            names. Without one, what needs it is left out.
        dataset: labeled images that the model was not trained on.
        processor: of the models; None loads it from where the model is from.
        retention: datasets of other tasks by name, with their own ClassLabel columns, classified zero-shot.
        spuriosity: the pool, as for `StarFTTrainer`; None: that of the model's record, or "background".
        vocabulary: words that images are compared with: a list, a file with one per line, "tokenizer" for those of
            the model's tokenizer (with the extra "audit", its nouns and adjectives), or None for none.
        class_names: names of the classes; None: those of the head, of the ClassLabel column or of the record.
        templates: prompts; None: those of the record.
        group_column: column that names a row's group, or several whose combinations do.
        group_function: names a row's group from its other columns, in place of `group_column`.
        image_column: column with the images.
        label_column: column with the labels.
        alpha: of the tests for correlates.
        batch_size: images per forward.
        num_workers: processes that load images.
        on_bad_image: "raise" or "skip", as in `evaluate_zero_shot`.
        image_decoding: as in `evaluate_zero_shot`, as is `image_cache`.
        image_cache: where decoded images are kept.
        cache_dir: folder of the cached embeddings, as `reference_cache_dir`.
        device: where images are embedded; None: where the model is.
        trust_remote_code: run the code that comes with a model of a class that transformers does not have.
        seed: of bootstrap samples and permutations.
        progress: whether to show progress bars.

    Returns:
        What was found; `save` writes it as a page and as JSON.

    Raises:
        ValueError: before the first forward, if data and model do not fit or a setting is invalid.
    """
    check_validation_set(dataset)
    check_on_bad_image(on_bad_image)
    check_image_decoding(image_decoding)
    settings = CorrelateSettings(alpha=alpha, seed=seed)
    words = given_words(vocabulary)
    kept = _checked_retention(retention)
    cache = given_image_cache(image_cache, dataset, num_workers, progress)
    known = describe(tuned, templates, spuriosity, trust_remote_code)
    if known.pool is None:
        known = replace(known, pool=as_pool(_DEFAULT_POOL))
    asked = ColumnSettings(image_column, label_column, None, group_column, class_names, group_function)
    columns = columns_for(known, dataset, asked)
    labels, named = targets(dataset, columns)
    subject = _with_known_words(load_subject(known, processor, start, columns.class_names or ()))

    folder = None if cache_dir is None else str(cache_dir)
    reference = ReferenceSettings(cache_dir=folder, batch_size=batch_size, num_workers=num_workers, progress=progress)
    reading = ImageReading(reference, cache, on_bad_image, image_decoding, device)
    embedder = Embedder(subject, dataset, columns, reading)
    towers = [Tower(subject, subject.model, subject.head, embedder)]
    if subject.start is not None:
        towers.append(Tower(subject, subject.start, None, embedder))
    # Without a start, the model itself says what images show.
    viewer = subject if subject.start is not None else replace(subject, start=subject.model)
    seen = None if subject.pool is None else seen_in_words(viewer, embedder)
    rows = np.flatnonzero(towers[0].images.any(1))
    if not len(rows):
        raise ValueError(f"none of the {len(labels)} images of dataset could be read")
    labels, named = labels[rows], [named[row] for row in rows]
    for tower in towers:
        tower.only(rows)
    answers = [tower.logits() for tower in towers]

    pseudo, left_out, found = labels, {}, None
    if seen is None:
        left_out["sensitivity"] = (
            "no template of the pool changes what the start sees in captions; pass spuriosity, another pool"
        )
    else:
        seen = [seen[row] for row in rows]
        pseudo = pseudo_groups(labels, indices_of(seen)[0])
        found = measure_sensitivity(towers, labels, answers)
        if found.shift is None:
            left_out["sensitivity.shift"] = "the model classifies by a linear head, which reads no captions"
    grouped_by = BY_COLUMN if columns.groups is not None else BY_CLASS if seen is None else BY_PSEUDO_GROUPS
    if grouped_by == BY_PSEUDO_GROUPS:
        named = named_groups(subject.class_names, labels, seen or [], pseudo)
    average, groups = compared(answers, labels, named, seed)

    vocabulary_used = usable_words(words, subject.encoder.encode_texts, subject.class_names)
    if words is None and not vocabulary_used:
        left_out["vocabulary"] = "the tokenizer has no English words; pass vocabulary, a file with a word per line"
    elif words is None and not has_lexicon():
        left_out["parts of speech"] = "pip install 'starft_hf[audit]' leaves only nouns and adjectives"
    embeds, similarities = compare_words(towers[-1], vocabulary_used)
    own_names = [subject.class_names[label] for label in labels]
    properties = measure_images(dataset, columns.image, rows.tolist(), own_names, progress=progress)
    if properties.unknown:
        left_out["properties"] = f"{properties.unknown} of {len(rows)} images could not be opened as files"
    looked = Looked(vocabulary_used, embeds, similarities, properties)
    correlates = find_correlates(looked, labels, answers[0].argmax(1) != labels, subject.class_names, settings)

    shared = {"batch_size": batch_size, "num_workers": num_workers, "on_bad_image": on_bad_image, "progress": progress}
    retained = measure_retention(towers, kept, shared)
    forgotten = measure_forgotten(towers, answers, vocabulary_used, retained)
    if subject.start is None:
        left_out["forgotten"] = "the model before fine-tuning is unknown; pass start='its id or folder'"
    worst = min(groups, key=lambda name: groups[name].after.accuracy)
    gain = 0.0 if found is None else max(0.0, found.largest[2])
    return AuditResult(
        model=_name_of(tuned),
        start=None if subject.start is None else _name_of(start) if start is not None else "the start of its run",
        class_names=list(subject.class_names),
        images=len(rows),
        rows=rows.tolist(),
        grouped_by=grouped_by,
        average=average,
        groups=groups,
        worst_group=worst,
        forgotten=forgotten,
        sensitivity=found,
        correlates=correlates,
        score=worst_accuracy(answers[0], labels, pseudo) * (1 - gain),
        left_out=left_out,
    )


def _with_known_words(subject: Subject) -> Subject:
    """The subject with the templates of its pool whose words the tokenizer knows; without a pool if it knows none."""
    pool = subject.pool
    assert pool is not None
    unknown = set(unknown_templates(pool, subject.encoder))
    rest = [index for index in range(len(pool)) if index not in unknown]
    return replace(subject, pool=pool.only(rest) if rest else None)


def _checked_retention(retention: Mapping[str, Any] | None) -> dict[str, Any]:
    if retention is not None and not isinstance(retention, Mapping):
        raise ValueError(f"retention is a {type(retention).__name__}; pass a dictionary of datasets by name")
    for name, dataset in (retention or {}).items():
        what = f"retention {name!r}"
        check_validation_set(dataset, what)
        resolve_evaluation_columns(dataset, ColumnSettings(), what=what)
    return dict(retention or {})


def _name_of(model: Any) -> str:
    named = getattr(getattr(model, "config", None), "_name_or_path", None) if isinstance(model, nn.Module) else model
    return without_paths(str(named)) if named else "a model in memory"
