"""Label columns of which a row may name any number of classes: as a list of them, or as a vector of 0 and 1.

What a value means, in this order: a string names classes, separated by "|"; a list of strings, or of a ClassLabel, has
one entry per class; booleans are a vector, with an entry for every class. Integers may be either. They are vectors if
every row has as many entries as there are classes, all of them 0 or 1, and indices of classes otherwise. With one or
two classes, `[0, 1]` is both, unless another row has the same number twice, and that is refused.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, LargeList, List, Value
from transformers.utils import logging

from starft_hf.data.labels import Labels
from starft_hf.data.source import plain


logger = logging.get_logger(__name__)

# How rows name their classes.
LISTS, VECTORS, EITHER = "lists", "vectors", "either"

SEPARATOR = "|"


def entry_feature(feature: Any) -> Any:
    """The feature of one entry of a label column: what its lists hold, or that of the column itself."""
    if isinstance(feature, (List, LargeList)):
        return feature.feature
    return feature[0] if isinstance(feature, list) and feature else feature


def entries_of(value: Any, column: str) -> list[Any]:
    """The entries of a row: of a list or a vector all of them, of a string its parts, else the value itself."""
    value = plain(value)
    if value is None:
        raise ValueError(
            f"column {column!r} has a row without a value, so its classes are unknown; fill it, with [] for an image "
            "of none of the classes, or drop the row"
        )
    if isinstance(value, str):
        return [part.strip() for part in value.split(SEPARATOR) if part.strip()]
    if isinstance(value, dict):
        raise ValueError(f"column {column!r} has {value!r}; a row needs a list of classes, or a vector of 0 and 1")
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else [value]


def distinct_entries(values: Iterable[Any], column: str) -> list[Any]:
    """The distinct entries of a label column, sorted."""
    found = {entry for value in values for entry in entries_of(value, column)}
    if None in found or len({isinstance(entry, str) for entry in found}) > 1:
        raise ValueError(f"column {column!r} has lists with missing entries, or with names and numbers; correct them")
    return sorted(found)


def form_of(values: Sequence[Any], feature: Any, labels: Labels, column: str, known: str | None = None) -> str:
    """Whether rows are `LISTS` or `VECTORS`.

    Args:
        values: all rows, of which there is at least one.
        feature: of an entry.
        labels: what an entry means.
        column: the name of the column.
        known: how the training set names classes, which decides where both are possible.

    Raises:
        ValueError: if both are possible, or numbers are neither.
    """
    if (form := form_by_type(feature)) is not None:
        return form
    rows, size = [entries_of(value, column) for value in values], len(labels.names)
    if any(isinstance(entry, str) for row in rows for entry in row):
        return LISTS
    if all(_is_vector(row) for row in rows):
        sizes = {len(row) for row in rows}
        repeats = any(len(set(row)) < len(row) for row in rows)
        if sizes == {size}:
            if repeats:
                return VECTORS
            if known in (LISTS, VECTORS):
                return str(known)
            raise ValueError(_ambiguous(rows[0], column, labels))
        if len(sizes) == 1 and repeats and max(sizes) > 1:
            raise ValueError(
                f"column {column!r} has vectors of {max(sizes)} numbers, such as {rows[0]}, but there are {size} "
                "classes; pass class_names with a name for every number"
            )
    return LISTS


def form_by_type(feature: Any) -> str | None:
    """How rows name their classes as the feature of an entry says it; None for numbers."""
    if isinstance(feature, ClassLabel) or getattr(feature, "dtype", None) in ("string", "large_string"):
        return LISTS
    return VECTORS if isinstance(feature, Value) and feature.dtype == "bool" else None


def class_indices(value: Any, form: str, labels: Labels, column: str) -> list[int]:
    """The classes of a row, sorted, each once."""
    entries, size = entries_of(value, column), len(labels.names)
    if form == EITHER:
        # Of an iterable dataset, rows are not known in advance.
        form = LISTS
        if len(entries) == size and all(isinstance(entry, bool) for entry in entries):
            form = VECTORS
        elif len(entries) == size and not isinstance(entries[0], str) and _is_vector(entries):
            if len(set(entries)) == len(entries):
                raise ValueError(_ambiguous(entries, column, labels))
            form = VECTORS
    if form == LISTS:
        return sorted({labels.index(entry, column) for entry in entries})
    if len(entries) != size:
        raise ValueError(
            f"column {column!r} has a row with {len(entries)} numbers, but there are {size} classes; give every row a "
            "0 or a 1 for every class"
        )
    for entry in entries:
        if entry not in (0, 1):
            raise ValueError(
                f"column {column!r} has a vector with {entry!r}; its numbers must be 0 or 1. Images of which it is "
                "not known whether they show a class cannot be used; drop such rows"
            )
    return [index for index, entry in enumerate(entries) if entry == 1]


def as_vector(indices: Sequence[int], size: int) -> np.ndarray:
    """The classes of a row as `(size,)` zeros and ones."""
    vector = np.zeros(size, dtype=np.float32)
    vector[list(indices)] = 1
    return vector


def check_rows(rows: Iterable[Sequence[int]], class_names: Sequence[str], column: str, what: str) -> None:
    """Check the classes of every row of a dataset, called `what`, and warn of those that none has."""
    present = {index for row in rows for index in row}
    if not present:
        raise ValueError(f"no row of {what} has a class in column {column!r}; pass images of some of the classes")
    if absent := [name for index, name in enumerate(class_names) if index not in present]:
        known = f"{len(absent)} of {len(class_names)} classes"
        logger.warning_once(f"{known} have no image in {what}, such as {absent[0]!r}.")


def _is_vector(row: Sequence[Any]) -> bool:
    return bool(row) and all(not isinstance(entry, str) and entry in (0, 1) for entry in row)


def _ambiguous(row: Sequence[Any], column: str, labels: Labels) -> str:
    size = len(labels.names)
    lists = f"datasets.List(datasets.ClassLabel(names={list(labels.names)!r}))"
    return (
        f"column {column!r} is ambiguous: with {size} class{'es' if size > 1 else ''}, {list(row)} may list classes "
        f"or be a vector with a 0 or a 1 for every class. Say which: dataset.cast_column({column!r}, {lists}) for "
        f"lists, dataset.cast_column({column!r}, datasets.List(datasets.Value('bool'))) for vectors"
    )
