"""Checks of single settings of a run."""

import math
import re
from collections.abc import Callable
from numbers import Integral
from typing import Any

from transformers.utils import logging

from starft_hf.data.decoding import ON_BAD_IMAGE
from starft_hf.data.images import IMAGE_DECODING
from starft_hf.data.retrieval import EVALUATION_TASKS
from starft_hf.hub.record import MULTI_LABEL
from starft_hf.objectives.regularizers import AUTO_WEIGHT, NO_REGULARIZER, Regularizer
from starft_hf.objectives.schedules import SCHEDULE_NAMES
from starft_hf.training.sampling import CLASS_BALANCED, SAMPLING_STRATEGIES
from starft_hf.utils.files import expanded
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

_OF_A_GROUP = re.compile(r"(.+_)?(accuracy|map|f1|class_ap)_.")

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "base_loss": ("contrastive", "cross_entropy", MULTI_LABEL),
    "reg_schedule": SCHEDULE_NAMES,
    "reweight": ("none", "attribution"),
    "train_sampling_strategy": SAMPLING_STRATEGIES,
    "reference_cache": ("auto", "text", "full", "none"),
    "eval_task": EVALUATION_TASKS,
    "on_bad_image": ON_BAD_IMAGE,
    "image_decoding": IMAGE_DECODING,
    "reference_dtype": (None, "float32", "bfloat16", "float16"),
    "reference_cache_dtype": (None, "float32", "float16"),
}


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_count(value: Any) -> bool:
    return value is None or _is_integer(value, 1)


# What numbers must be, as a test and in words.
_NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "discovery_samples": (lambda value: _is_integer(value, 1), "a positive integer"),
    "hub_timeout": (lambda value: 0 < value < math.inf, "a positive number of seconds"),
    "layer_decay": (lambda value: value is None or 0 < value <= 1, "above 0 and at most 1, or None"),
    "max_logit_scale": (
        lambda value: value is None or 0 < value < math.inf,
        "a positive number, or None for no limit",
    ),
    "max_train_samples": (_is_count, "a positive integer, or None for all images"),
    "mini_batch_size": (_is_count, "a positive integer, or None for whole batches"),
    "reference_text_cache_gib": (lambda value: value >= 0, "a non-negative number; float('inf') sets no limit"),
    "shuffle_buffer_size": (lambda value: _is_integer(value, 0), "a number of rows; 0 keeps the order of the dataset"),
    "reg_max_classes": (lambda value: _is_integer(value, 2), "an integer of at least 2, because classes are compared"),
    "reweight_clip": (lambda value: 1 <= value < math.inf, "a finite number of at least 1, or use reweight='none'"),
    "shots": (_is_count, "a positive integer, or None for all images"),
}


def check_settings(args: Any) -> None:
    """Raise ValueError if a setting is not one of its choices, or a number is out of its bounds."""
    for name, known in _CHOICES.items():
        if getattr(args, name) not in known:
            raise ValueError(unknown_name(name, getattr(args, name), filter(None, known)))
    for name, (is_valid, words) in _NUMBERS.items():
        if not is_valid(getattr(args, name)):
            raise ValueError(f"{name} is {getattr(args, name)!r}; it must be {words}")
    if args.shots is not None and args.max_train_samples is not None:
        raise ValueError(
            f"shots={args.shots} and max_train_samples={args.max_train_samples} both choose what is trained on; set "
            "one of them"
        )
    if args.card_template is not None and not expanded(args.card_template).is_file():
        raise ValueError(f"card_template is {args.card_template!r}, but there is no such file")
    if args.base_loss == MULTI_LABEL:
        _check_multi_label(args)


def checked_direction(metric: str, base_loss: str, greater_is_better: bool | None) -> bool | None:
    """`greater_is_better` of `metric_for_best_model`; None where Trainer knows.

    To it, all but what ends with "loss" is the better the greater it is: the checkpoint that is calibrated worst, and
    that with the lowest accuracy of a group called "gloss".

    Raises:
        ValueError: if the metric is a name, or none of images of several classes, or if it may be the accuracy of a
            group called "loss" as well as the loss of a dataset called "accuracy".
    """
    _check_metric(metric, base_loss)
    last = metric.rpartition("_")[2]
    if greater_is_better is not None:
        return greater_is_better
    if not _OF_A_GROUP.match(metric):
        return False if last == "ece" else None
    if last in ("loss", "ece"):
        raise ValueError(
            f"metric_for_best_model is {metric!r}, which may be a figure of a group or the {last} of an evaluation "
            "set; pass greater_is_better, True or False"
        )
    return True


def _check_metric(metric: str, base_loss: str) -> None:
    several = base_loss == MULTI_LABEL
    figures = {"worst_group": "map" if several else "accuracy", **({"worst_class": "ap"} if several else {})}
    for name, figure in figures.items():
        if metric.endswith(name):
            what = name.removeprefix("worst_")
            raise ValueError(
                f"metric_for_best_model is {metric!r}, the name of a {what}; use its {figure}, {metric}_{figure}"
            )
    of_one_class = ("worst_group_accuracy", "group_adjusted_accuracy", "ece")
    if several and (metric.endswith(of_one_class) or metric.removeprefix("eval_") == "accuracy"):
        raise ValueError(
            f"metric_for_best_model is {metric!r}, which images of several classes do not have; use map, micro_f1, "
            "macro_f1, worst_class_ap, worst_class_f1 or, with group_column, worst_group_map or worst_group_f1"
        )


def _check_multi_label(args: Any) -> None:
    """Check what images of several classes leave undefined."""
    if args.reweight != "none":
        raise ValueError(
            f"reweight={args.reweight!r} gives every image a weight by its class, and with base_loss='multi_label' an "
            "image has any number of them; use reweight='none'"
        )
    if args.shots is not None or args.train_sampling_strategy == CLASS_BALANCED:
        name = "shots" if args.shots is not None else "train_sampling_strategy"
        raise ValueError(
            f"{name}={getattr(args, name)!r} draws images by their class, and with base_loss='multi_label' an image "
            "has any number of them; use max_train_samples, or group_column with "
            "train_sampling_strategy='group_balanced'"
        )
    if args.caption_column is not None:
        raise ValueError(
            f"caption_column is {args.caption_column!r}, and base_loss='multi_label' compares images with captions of "
            "the classes, by caption_template; leave caption_column out"
        )


def check_reg_weight(reg_weight: float | str, regularizer: Regularizer | None) -> float | str:
    """`reg_weight` as a finite non-negative number, or "auto" if the regularizer knows a weight for it."""
    if reg_weight == AUTO_WEIGHT:
        if regularizer is not None:
            regularizer.weight(reg_weight, None)
        return AUTO_WEIGHT
    try:
        value = float(reg_weight)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"reg_weight is {reg_weight!r}; it must be a finite number that is not negative, or {AUTO_WEIGHT!r}. "
            f"Use regularizer={NO_REGULARIZER!r} for plain fine-tuning."
        )
    return value


def check_schedule(args: Any, regularizer: Regularizer | None, *, streamed: bool) -> None:
    """Check that the weight of the regularizer can follow its schedule; warn where it is 0."""
    if args.reg_schedule == "epoch_linear" and (streamed or args.max_steps > 0):
        raise ValueError(
            "reg_schedule='epoch_linear' counts epochs, which an iterable dataset or a run limited by max_steps does "
            "not have; use reg_schedule='linear'"
        )
    if regularizer is None:
        return
    if args.reg_schedule == "epoch_linear" and args.num_train_epochs <= 1:
        logger.warning(
            "reg_schedule='epoch_linear' is 0 in the last epoch, so this run of one epoch has no regularizer; use "
            "reg_schedule='linear'."
        )
    if args.reg_weight == 0:
        logger.warning("reg_weight is 0; regularizer=%r does the same at less cost.", NO_REGULARIZER)


def check_crop_scale(crop_scale: object) -> tuple[float, float] | None:
    """`crop_scale` as a pair of numbers with 0 < low <= high <= 1, or None."""
    if crop_scale is None:
        return None
    try:
        low, high = (float(bound) for bound in crop_scale)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low <= high <= 1:
        wanted = "two numbers with 0 < low <= high <= 1, such as (0.9, 1.0), or None for no random crops"
        raise ValueError(f"crop_scale is {crop_scale!r}; it must be {wanted}")
    return low, high
