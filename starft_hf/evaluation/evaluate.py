"""Evaluation of a classifier without a trainer."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from starft_hf.data.captions import check_caption_templates
from starft_hf.data.class_mapping import resolve_mapped_columns
from starft_hf.data.collator import StarFTCollator
from starft_hf.data.columns import ColumnSettings, group_names, resolve_evaluation_columns
from starft_hf.data.decoding import RAISE, check_on_bad_image
from starft_hf.data.examples import EvaluationExampleMaker, IndexedExamples
from starft_hf.data.groups import GroupFunction
from starft_hf.data.image_cache import given_image_cache
from starft_hf.data.images import SCALED, ImagePreprocessor, check_image_decoding
from starft_hf.data.source import is_iterable
from starft_hf.evaluation.loop import ClassifierEvaluation
from starft_hf.evaluation.multi_label import MultiLabelEvaluation, MultiLabelResult
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.evaluation.validation import check_shares, check_single_label_only
from starft_hf.models.adapters import base_model_of
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.loading import load_model, load_processor
from starft_hf.models.modes import evaluation_mode, floating_dtype
from starft_hf.models.sigmoid import NO_BIAS, has_bias
from starft_hf.utils.collectives import NO_SAMPLE, shard_indices, world_size
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
        head: a linear head over `class_names`, in place of the zero-shot classifier.
        training_shares: share, or rows, of every group in the training set, for the group-adjusted accuracy. Every
            group with rows must have one, and every group with a share above 0 must have rows.
        multi_label: whether rows have any number of classes, as lists of them or as vectors of 0 and 1. The model must
            have a bias: one trained with `base_loss="multi_label"`, or a sigmoid model such as SigLIP. Neither
            `head`, `class_mapping`, `training_shares` nor `keep_mistakes` have a meaning there.
        batch_size: images per forward.
        num_workers: processes that load images.
        dtype: of autocast, such as `torch.bfloat16`; None: the model's own.
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
    check_on_bad_image(on_bad_image)
    check_image_decoding(image_decoding)
    templates = [templates] if isinstance(templates, str) else list(templates)
    check_caption_templates("templates", templates)
    if isinstance(dataset, Mapping):
        raise ValueError(f"dataset is a dictionary with {sorted(dataset)}; pass one of its datasets")
    if is_iterable(dataset):
        raise ValueError(
            "dataset is an iterable dataset, which cannot be split among processes; pass one that can be read by index"
        )
    cache = given_image_cache(image_cache, dataset, num_workers, progress)
    if class_names is not None:
        check_names(class_names)
        check_distinct(class_names)
    settings = ColumnSettings(
        image_column, label_column, None, group_column, class_names, group_function, multi_label=multi_label
    )
    if multi_label:
        single = {"head": head, "class_mapping": class_mapping, "training_shares": training_shares}
        check_single_label_only({**single, "keep_mistakes": keep_mistakes or None})
    if class_mapping is None:
        columns = resolve_evaluation_columns(dataset, settings, what="dataset")
    else:
        columns = resolve_mapped_columns(dataset, settings, class_mapping, class_names, what="dataset")
    if head is not None:
        _check_head(head, columns.classifier or columns.class_names or ())
    if training_shares is not None:
        check_shares(training_shares, group_names(dataset, columns))
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype!r}; pass torch.bfloat16, torch.float16 or None, for the model's own")

    trusted = {"trust_remote_code": trust_remote_code}
    model = load_model(model, **trusted)
    if multi_label and not has_bias(model):
        raise ValueError(NO_BIAS.format(type(model).__name__))
    device = next(model.parameters()).device
    if head is not None:
        # Embeddings are in float32 or wider.
        head = copy.deepcopy(head).to(device, torch.promote_types(floating_dtype(model), torch.float32))
    encoder = DualEncoder.of(model, load_processor(base_model_of(model), processor, **trusted))
    maker = EvaluationExampleMaker(columns, ImagePreprocessor(encoder.image_processor, decoding=image_decoding))
    examples = IndexedExamples(dataset, maker, on_bad_image, cache)
    examples.prepare(device)
    # Every process runs as many forwards as the others, because wrappers gather parameters in them.
    examples.padded = True
    share = list(shard_indices(len(examples)))
    mine = Subset(examples, share + [NO_SAMPLE] * (-(-len(examples) // world_size()) - len(share)))
    collate, generator = StarFTCollator(encoder.encode_texts), torch.Generator()
    # A loader draws a seed for its workers; from a generator of its own, it leaves the global one alone.
    loader = DataLoader(mine, batch_size, num_workers=num_workers, collate_fn=collate, generator=generator)
    evaluation: ClassifierEvaluation | MultiLabelEvaluation = MultiLabelEvaluation(encoder, columns, templates)
    if not multi_label:
        evaluation = ClassifierEvaluation(encoder, columns, templates, head, keep_mistakes)
    autocast = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    with evaluation_mode(model), autocast:
        for batch in tqdm(loader, desc="Evaluating", unit=" batches", disable=not progress):
            evaluation.step(model, send_to_device(batch, device))
    return evaluation.result(training_shares)


def _check_head(head: nn.Linear, class_names: Sequence[str]) -> None:
    if not isinstance(head, nn.Linear):
        raise ValueError(f"head is a {type(head).__name__}; pass an nn.Linear over class_names")
    if head.out_features != len(class_names):
        raise ValueError(
            f"the head has {head.out_features} outputs, but there are {len(class_names)} class names; pass the class "
            "names of the head, and class_mapping where the labels are others"
        )
