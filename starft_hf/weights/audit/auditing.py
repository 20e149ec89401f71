"""`audit`: what a fine-tuned model has forgotten, what it leans on, and shortcuts that nobody named."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import nn

from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.data.decoding import RAISE
from starft_hf.data.groups import GroupFunction
from starft_hf.data.images import SCALED
from starft_hf.hub.audits import weights_digest
from starft_hf.report.audit import AuditResult
from starft_hf.spuriosity.auto import Spuriosity
from starft_hf.spuriosity.correlates import CorrelateSettings
from starft_hf.spuriosity.discovery import unknown_templates
from starft_hf.spuriosity.pool import as_pool
from starft_hf.spuriosity.vocabulary import TOKENIZER, Vocabulary, given_words
from starft_hf.utils.text import without_paths
from starft_hf.weights.audit.audited import Audited
from starft_hf.weights.audit.saliency import check_saliency_maps
from starft_hf.weights.repair.embedding import ImageReading
from starft_hf.weights.repair.labeled import LabeledImages, check_validation_set
from starft_hf.weights.repair.subject import Subject


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
    saliency_maps: int = 6,
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

    Groups: the accuracy and calibration in every group, with intervals. Without a group column, groups are
    combinations of class and of what the start sees of the pool's templates in an image.

    Forgotten: how far the similarities of texts have moved, how many answers have changed, and the accuracy on
    datasets of other tasks.

    Sensitivity: how much classes attract images of other classes that look like what a template of the pool says, and
    how much answers move if all captions gain the template, for the model and its start.

    Correlates: which words of a vocabulary, and which properties of images and files (brightness, contrast, sharpness,
    colorfulness, warmth, size, aspect, border, JPEG quality, file type, folder, camera, month), labels are correlated
    with, and mistakes on images of one class. Of datasets without any correlation, no more than `alpha` give one of
    labels, and no more than `alpha` one of mistakes.
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
        alpha: of the tests for correlates of labels, and of those for correlates of mistakes.
        saliency_maps: how many of the most confident mistakes in the worst group are shown on the page, with the
            parts of the image that speak for them by the model and by its start: the effect of hiding them, in some
            100 forwards per image and model. 0 for none, and no images on the page.
        batch_size: images per forward.
        num_workers: processes that load images.
        on_bad_image: "raise" or "skip", as in `evaluate_zero_shot`.
        image_decoding: as in `evaluate_zero_shot`, as is `image_cache`.
        image_cache: where decoded images are kept.
        cache_dir: folder of the cached embeddings, as `reference_cache_dir`.
        device: where images are embedded; None: where the model is.
        trust_remote_code: run the code that comes with a model of a class that transformers does not have.
        seed: of permutations.
        progress: whether to show progress bars.

    Returns:
        What was found; `save` writes it as a page and as JSON.

    Raises:
        ValueError: before the first forward, if data and model do not fit or a setting is invalid.
    """
    correlate_settings = CorrelateSettings(alpha=alpha, seed=seed)
    check_saliency_maps(saliency_maps)
    words = given_words(vocabulary)
    kept = _checked_retention(retention)
    reading = ImageReading(
        batch_size, num_workers, on_bad_image, image_decoding, image_cache, cache_dir, device, progress
    )
    asked = ColumnSettings(image_column, label_column, None, group_column, class_names, group_function)
    described: dict[str, Any] = {"templates": templates, "spuriosity": spuriosity}
    images = LabeledImages.of(tuned, dataset, asked, reading, trust_remote_code=trust_remote_code, **described)
    if images.known.pool is None:
        images = replace(images, known=replace(images.known, pool=as_pool(_DEFAULT_POOL)))
    audited = Audited(_with_known_words(images.load(processor, start)), images)

    sensitivity = audited.sensitivity()
    average, groups = audited.groups()
    worst = min(groups, key=lambda name: groups[name].after.accuracy)
    mistakes = audited.mistakes(worst, saliency_maps)
    vocabulary_used = audited.vocabulary(words)
    return AuditResult(
        model=_name_of(tuned),
        start=_name_of_start(audited.subject, start),
        class_names=list(audited.subject.class_names),
        images=len(audited.rows),
        rows=audited.rows.tolist(),
        grouped_by=audited.grouped_by,
        average=average,
        groups=groups,
        worst_group=worst,
        worst_interval=audited.worst_interval(),
        forgotten=audited.forgotten(vocabulary_used, kept),
        sensitivity=sensitivity,
        correlates=audited.correlates(vocabulary_used, correlate_settings),
        score=audited.score(sensitivity),
        left_out=audited.left_out,
        weights=None if images.known.folder is None else weights_digest(images.known.folder),
        mistakes=[mistake for mistake, _ in mistakes],
        mistake_images={mistake.row: image for mistake, image in mistakes},
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


def _name_of_start(subject: Subject, start: Any) -> str | None:
    if subject.start is None:
        return None
    return _name_of(start) if start is not None else "the start of its run"
