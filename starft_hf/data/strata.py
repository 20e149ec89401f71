"""Strata of a dataset, which are its classes or its groups: which rows they have, and rows drawn from them by seed."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starft_hf.data.columns import ImageColumns, read_column
from starft_hf.data.randomness import Draw, sample_generator


Rows = NDArray[np.int64]

# A generator costs more than some permutations, of which it draws several where rows are few.
_DRAWN_TOGETHER = 1024


def classes_of(dataset: Any, columns: ImageColumns) -> list[int]:
    """The class index of every row; of a dataset that is not one of `datasets`, by reading all rows."""
    label = columns.label
    assert label is not None
    if hasattr(dataset, "select_columns"):
        values = read_column(dataset, label)
    else:
        values = [dataset[row][label] for row in range(len(dataset))]
    index_of = {value: columns.label_index(value) for value in set(values)}
    return [index_of[value] for value in values]


def groups_of(dataset: Any, columns: ImageColumns) -> list[str]:
    """The name of the group of every row, from its columns other than image and caption.

    Raises:
        ValueError: if a row has no value in one of them.
    """
    used = [column for column in columns.used if column not in (columns.image, columns.caption)]
    rows: Iterator[Any]
    if hasattr(dataset, "select_columns"):
        rows = zip(*(read_column(dataset, column) for column in used), strict=True)
    else:
        read = (dataset[row] for row in range(len(dataset)))
        rows = ([row[column] for column in used] for row in read)
    return [columns.group_of(dict(zip(used, row, strict=True))) for row in rows]


def rows_by(keys: Sequence[Hashable]) -> dict[Any, Rows]:
    """The rows of every stratum, in order; `keys` has one per row."""
    found: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return {key: np.asarray(found[key], dtype=np.int64) for key in sorted(found)}


def drawn_rows(rows: Rows, number: int, seed: int, stratum: int = 0) -> list[int]:
    """`number` of the rows of a stratum, or all if there are fewer. A larger number adds to those of a smaller one."""
    order = sample_generator(seed, 0, stratum, Draw.SUBSET).permutation(len(rows))
    return rows[order[:number]].tolist()


def balanced_epoch(strata: Sequence[Rows], seed: int, epoch: int) -> Rows:
    """The rows of an epoch in which every stratum has the same number of places, or one more.

    An epoch has as many places as there are rows. Over all epochs, places are dealt to the strata in turn, and those
    of a stratum to its rows in random order, to each of them once before any of them again. All is a function of the
    seed and the epoch.

    Returns:
        Rows, where one that has several places has further ones as `row + k * number of rows`, for k from 1.
    """
    size, drawn = sum(map(len, strata)), []
    turns = sample_generator(seed, 0, 0, Draw.STRATA).permutation(len(strata))
    for turn, stratum in enumerate(turns.tolist()):
        # How many of the first places of all epochs are those of this stratum.
        first, end = (-(-(places - turn) // len(strata)) for places in (epoch * size, (epoch + 1) * size))
        drawn.append(_dealt(strata[stratum], first, end, seed, stratum))
    rows = sample_generator(seed, epoch, 0, Draw.ORDER).permutation(np.concatenate(drawn))
    return rows + size * _occurrences(rows)


def _dealt(rows: Rows, first: int, end: int, seed: int, stratum: int) -> Rows:
    """The rows at the places from `first` to `end`, exclusive, of a stratum: one permutation follows another."""
    together = np.tile(rows, (max(1, _DRAWN_TOGETHER // len(rows)), 1))
    blocks = range(first // together.size, -(-end // together.size))
    generators = (sample_generator(seed, number, stratum, Draw.STRATUM) for number in blocks)
    dealt = np.concatenate([generator.permuted(together, axis=1).ravel() for generator in generators])
    return dealt[first - blocks.start * together.size : end - blocks.start * together.size]


def _occurrences(values: Rows) -> Rows:
    """How often each value has occurred before."""
    order = np.argsort(values, kind="stable")
    ordered, places = values[order], np.arange(len(values))
    is_first = np.append(True, ordered[1:] != ordered[:-1])
    counts = np.empty_like(values)
    counts[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return counts
