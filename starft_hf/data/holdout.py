"""Rows of a training set that are held out for validation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Image

from starft_hf.data.columns import read_column


# The share that is held out by default.
VALIDATION_SPLIT = 0.15
_SMALL = 4


def held_out(
    dataset: Any, share: float, stratify: Sequence[str], seed: int = 0, images: Sequence[Any] = ()
) -> tuple[list[int], list[int]]:
    """The rows to train on and the rows to hold out, each in order.

    Args:
        dataset: a `datasets` Dataset.
        share: the share to hold out, of every stratum: at least one row, and not all. Strata of fewer than four rows
            are too small for that; of all of them together, the same share is held out, no more than one row of each.
        stratify: the columns whose values together make the strata, such as class and group.
        seed: of the choice.
        images: for every row what is the same for rows with the same image, which stay together; empty: each has its
            own.

    Raises:
        ValueError: if the share is not between 0 and 1.
    """
    check_share(share)
    first: dict[Any, int] = {}
    for row, image in enumerate(images):
        first.setdefault(image, row)
    if len(first) < len(images):
        rows, keys_of = list(first.values()), list(first)
        _, places = held_out(dataset.select(rows), share, stratify, seed)
        held = {keys_of[place] for place in places}
        inside = [row for row, image in enumerate(images) if image in held]
        return [row for row, image in enumerate(images) if image not in held], inside
    keys = list(zip(*(map(str, read_column(dataset, column)) for column in stratify), strict=True))
    strata: dict[Any, list[int]] = {}
    for row, key in enumerate(keys or [()] * len(dataset)):
        strata.setdefault(key, []).append(row)
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    small = []
    for _, rows in sorted(strata.items()):
        if len(rows) < _SMALL:
            small.append(int(generator.choice(rows)))
        elif share:
            number = max(1, min(math.floor(share * len(rows) + 0.5), len(rows) - 1))
            chosen += generator.permutation(rows)[:number].tolist()
    # A row of each would be too many: one of as many small strata as make up the share of all their rows.
    several = [row for row in small if len(strata[keys[row] if keys else ()]) > 1]
    size = sum(len(rows) for rows in strata.values() if len(rows) < _SMALL)
    chosen += generator.permutation(several)[: math.floor(share * size + 0.5)].tolist()
    kept = set(range(len(dataset))) - set(chosen)
    return sorted(kept), sorted(chosen)


def image_paths(dataset: Any, column: str) -> list[str]:
    """The files of the images of a `datasets` Dataset; empty if it has their bytes."""
    if not isinstance(dataset.features.get(column), Image):
        return []
    plain = dataset.cast_column(column, Image(decode=False))
    if plain[0][column] is None or plain[0][column]["bytes"] is not None:
        return []
    return [str(value and value["path"]) for value in read_column(plain, column)]


def check_share(share: float) -> None:
    """Check a share of rows to hold out."""
    if not 0 <= share < 1:
        raise ValueError(f"validation_split is {share}; it must be at least 0, for none, and below 1")
