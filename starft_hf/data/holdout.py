"""Rows of a training set that are held out for validation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from starft_hf.data.columns import read_column


# The share that is held out by default.
VALIDATION_SPLIT = 0.15


def held_out(dataset: Any, share: float, stratify: Sequence[str], seed: int = 0) -> tuple[list[int], list[int]]:
    """The rows to train on and the rows to hold out, each in order.

    Args:
        dataset: a `datasets` Dataset.
        share: the share to hold out, of every stratum and in all. Of a stratum of several rows, at least one is held
            out and one kept.
        stratify: the columns whose values together make the strata, such as class and group.
        seed: of the choice.

    Raises:
        ValueError: if the share is not between 0 and 1.
    """
    check_share(share)
    keys = list(zip(*(map(str, read_column(dataset, column)) for column in stratify), strict=True))
    strata: dict[Any, list[int]] = {}
    for row, key in enumerate(keys or [()] * len(dataset)):
        strata.setdefault(key, []).append(row)
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    owed = 0.0
    for _, rows in sorted(strata.items()):
        # Rounding is carried over, so that many small strata do not add up to another share. One row of each is held
        # out at least, because a class without any could not be evaluated, and one is kept.
        owed += share * len(rows)
        number = min(max(math.floor(owed + 0.5), 1), len(rows) - 1) if share else 0
        owed -= number
        chosen += generator.permutation(rows)[:number].tolist()
    kept = set(range(len(dataset))) - set(chosen)
    return sorted(kept), sorted(chosen)


def check_share(share: float) -> None:
    """Check a share of rows to hold out."""
    if not 0 <= share < 1:
        raise ValueError(f"validation_split is {share}; it must be at least 0, for none, and below 1")
