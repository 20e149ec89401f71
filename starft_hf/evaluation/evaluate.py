"""Evaluation of a classifier without a trainer."""

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.class_mapping import resolve_mapped_columns
from starft_hf.data.columns import ColumnSettings, group_names, resolve_evaluation_columns
from starft_hf.data.decoding import RAISE
from starft_hf.data.examples import EvaluationExampleMaker
from starft_hf.data.groups import GroupFunction
from starft_hf.data.images import SCALED
from starft_hf.evaluation.loop import ClassifierEvaluation
from starft_hf.evaluation.multi_label import MultiLabelEvaluation
from starft_hf.evaluation.passes import EvaluationSettings
from starft_hf.evaluation.results import EvaluationResult, MultiLabelResult
from starft_hf.evaluation.validation import check_shares, check_single_label_only
from starft_hf.models.heads import head_over
from starft_hf.models.modes import floating_dtype
from starft_hf.models.sigmoid import NO_BIAS, has_bias
from starft_hf.utils.names import check_distinct, check_names


def evaluate_zero_shot(
    model: str | PathLike[str] | nn.Module,
    processor: Any,
    dataset: Any,
    *,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | str = "a photo of a {}.",
    group_column: str | Sequence[str] | None = None,
    group_function: GroupFunction | None = None,
    image_column: str = "image",
    label_column: str = "label",
    class_mapping: Sequence[Sequence[int]] | None = None,
    head: nn.Linear | None = None,
    training_shares: Mapping[str, float] | None = None,
    multi_label: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    keep_mistakes: int = 0,
    on_bad_image: str = RAISE,
    image_decoding: str = SCALED,
    image_cache: str | PathLike[str] | bool | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> EvaluationResult | MultiLabelResult:
    """Classify the images of a labeled dataset zero-shot, or with a linear head, and measure accuracy and calibration.

    With `multi_label`, average precision and F1 are measured instead.

    In a process group, as a Trainer or `accelerate.PartialState()` sets it up, each process classifies part of the
    images, and all of them return the result of the whole set. Memory grows with the classes, not with the images.

    Args:
        model: a dual encoder, a Hub id or a path.
        processor: its processor; None loads it from where the model is from.
        dataset: a `datasets` Dataset, or any dataset whose rows are mappings and can be read by index.
        class_names: names of the classes; None: those of the ClassLabel column.
        templates: prompts with `{}` for the class name; the embeddings of several are averaged.
        group_column: column that names a row's group, or several whose combinations do; None: the classes.
        group_function: names a row's group from its other columns, in place of `group_column`.
        image_column: column with the images.
        label_column: column with the labels.
        class_mapping: for datasets whose classes stand for several of the classifier's: for every label the indices
            into `class_names`, of which the best counts. Labels have the names of the ClassLabel column, or else of
            the first class that each stands for.
        head: a linear head over `class_names`, in place of the zero-shot classifier. If it has `class_names` of its
            own, as that of a loaded model, its rows are matched with them by name.
        training_shares: share, or rows, of every group in the training set, for the group-adjusted accuracy. Every
            group with rows must have one, and every group with a share above 0 must have rows.
        multi_label: whether rows have any number of classes, as lists of them or as vectors of 0 and 1. The model must
            have a bias: one trained with `base_loss="multi_label"`, or a sigmoid model such as SigLIP. `head`,
            `class_mapping`, `training_shares` and `keep_mistakes` are not supported there.
        batch_size: images per forward.
        num_workers: processes that load images.
        dtype: autocast dtype, such as `torch.bfloat16`; None: the model's own.
        keep_mistakes: how many of the worst group's most confident mistakes to keep.
        on_bad_image: what to do about a row whose image cannot be read: "raise" raises an error that names it; "skip"
            excludes it with a warning, and counts it in the result's `skipped`.
        image_decoding: "scaled" decodes an image at no more than the size that resizing it well takes, which is faster
            for photos; "full" decodes all its pixels.
        image_cache: "auto" or True, for `starft` under HF_HOME, or a folder: what the model gets of the images is kept
            there, and further evaluations read it. None keeps nothing.
        trust_remote_code: whether to run code that comes with a model whose classes transformers does not have.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if data, classes, groups or model do not fit, before the first forward.
    """
    settings = EvaluationSettings(
        batch_size, num_workers, dtype, on_bad_image, image_decoding, image_cache, trust_remote_code, progress
    )
    settings.check(dataset)
    templates = [templates] if isinstance(templates, str) else list(templates)
    check_caption_templates("templates", templates)
    if class_names is not None:
        check_names(class_names)
        check_distinct(class_names)
    named = ColumnSettings(
        image_column, label_column, None, group_column, class_names, group_function, multi_label=multi_label
    )
    if multi_label:
        single = {"head": head, "class_mapping": class_mapping, "training_shares": training_shares}
        check_single_label_only({**single, "keep_mistakes": keep_mistakes or None})
    if class_mapping is None:
        columns = resolve_evaluation_columns(dataset, named, what="dataset")
    else:
        columns = resolve_mapped_columns(dataset, named, class_mapping, class_names, what="dataset")
    if head is not None:
        head = head_over(head, columns.classifier or columns.class_names or ())
    if training_shares is not None:
        check_shares(training_shares, group_names(dataset, columns))

    model, encoder = settings.load(model, processor)
    if multi_label and not has_bias(model):
        raise ValueError(NO_BIAS.format(type(model).__name__))
    if head is not None:
        # Embeddings are in float32 or wider.
        device = next(model.parameters()).device
        head = copy.deepcopy(head).to(device, torch.promote_types(floating_dtype(model), torch.float32))
    maker = EvaluationExampleMaker(columns, settings.preprocessor(encoder))
    if multi_label:
        return settings.evaluate(model, dataset, maker, MultiLabelEvaluation(encoder, columns, templates))
    evaluation = ClassifierEvaluation(encoder, columns, templates, head, keep_mistakes)
    return settings.evaluate(model, dataset, maker, evaluation, training_shares)
