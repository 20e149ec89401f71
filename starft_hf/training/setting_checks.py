"""Checks of single settings of a run."""

import math
from typing import Any

from starft_hf.data.decoding import ON_BAD_IMAGE
from starft_hf.objectives.regularizers import AUTO_WEIGHT, NO_REGULARIZER, Regularizer
from starft_hf.objectives.schedules import SCHEDULE_NAMES
from starft_hf.utils.names import unknown_name


CHOICES: dict[str, tuple[str | None, ...]] = {
    "base_loss": ("contrastive", "cross_entropy"),
    "reg_schedule": SCHEDULE_NAMES,
    "reweight": ("none", "attribution"),
    "reference_cache": ("auto", "text", "full", "none"),
    "on_bad_image": ON_BAD_IMAGE,
    "reference_dtype": (None, "float32", "bfloat16", "float16"),
    "reference_cache_dtype": (None, "float32", "float16"),
}


def check_choices(args: Any) -> None:
    """Check the settings that have one of a few values.

    Raises:
        ValueError: if one has another.
    """
    for name, known in CHOICES.items():
        if getattr(args, name) not in known:
            raise ValueError(unknown_name(name, getattr(args, name), filter(None, known)))


def check_numbers(args: Any) -> None:
    """Check the bounds of settings that are numbers.

    Raises:
        ValueError: if one is outside of them.
    """
    if args.discovery_samples < 1:
        raise ValueError(f"discovery_samples is {args.discovery_samples}; it must be a positive integer")
    if args.mini_batch_size is not None and args.mini_batch_size < 1:
        raise ValueError(
            f"mini_batch_size is {args.mini_batch_size}; it must be a positive integer, or None to run the batch as a "
            "whole"
        )
    if not args.reference_text_cache_gib >= 0:
        raise ValueError(
            f"reference_text_cache_gib is {args.reference_text_cache_gib}; it must be a non-negative number of GiB: "
            "0 encodes captions when they are needed, and float('inf') sets no limit"
        )
    if args.reg_max_classes < 2:
        raise ValueError(f"reg_max_classes is {args.reg_max_classes}; comparing takes at least 2 classes")
    if not (math.isfinite(args.reweight_clip) and args.reweight_clip >= 1):
        raise ValueError(
            f"reweight_clip is {args.reweight_clip}; it must be a finite number of at least 1, because the weights "
            "have a mean of 1. Use reweight='none' to weight all images equally."
        )


def check_reg_weight(reg_weight: float | str, regularizer: Regularizer | None) -> float | str:
    """`reg_weight` as a finite number that is not negative, or "auto".

    Raises:
        ValueError: if it is anything else, or no weight is known for "auto".
    """
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


def check_crop_scale(crop_scale: object) -> tuple[float, float]:
    """`crop_scale` as a pair of numbers with 0 < low <= high <= 1.

    Raises:
        ValueError: if it is anything else.
    """
    try:
        low, high = (float(bound) for bound in crop_scale)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"crop_scale is {crop_scale!r}; it must be two numbers with 0 < low <= high <= 1, such as (0.9, 1.0), "
            "or None for the processor's deterministic preprocessing"
        )
    return low, high
