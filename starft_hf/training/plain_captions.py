"""How many of the spurious captions are plain ones, without a template."""

import math
from typing import Any

from starft_hf.hub.record import MULTI_LABEL
from starft_hf.objectives.regularizers import AUTO_REGULARIZER, Regularizer


AUTO_SHARE = "auto"
# Measured with two to four classes, in both worlds of docs/evidence.md; with more, it forgives more and gains less.
SHARE_OF_FEW_CLASSES = 0.25
FEW_CLASSES = 4


def check_plain_share(share: float | str) -> float | str:
    """`plain_caption_share` as a number from 0 up to 1, or "auto"."""
    if share == AUTO_SHARE:
        return AUTO_SHARE
    try:
        value = float(share)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < 1:
        raise ValueError(
            f"plain_caption_share is {share!r}; it must be a number of at least 0 and below 1, or {AUTO_SHARE!r}"
        )
    return value


def plain_share(args: Any, regularizer: Regularizer | None, num_classes: int | None) -> float:
    """The share for a setting of `plain_caption_share`.

    "auto" is a quarter with `regularizer="auto"` and captions of up to four classes, else 0, and 0 for multi-label
    runs.

    Args:
        args: the settings, a `StarFTConfig`.
        regularizer: what "auto" is, if it is that.
        num_classes: how many classes the captions name; None for captions of another kind.
    """
    if regularizer is None:
        return 0.0
    if args.plain_caption_share != AUTO_SHARE:
        return float(args.plain_caption_share)
    few = num_classes is not None and num_classes <= FEW_CLASSES and args.base_loss != MULTI_LABEL
    return SHARE_OF_FEW_CLASSES if few and args.regularizer == AUTO_REGULARIZER else 0.0
