"""Checks of the arguments of metrics; each raises a ValueError."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """`values` as an array."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} cannot be an array ({error}); pass rows of one length") from None


def class_indices(name: str, values: ArrayLike, num_classes: int | None = None) -> NDArray[np.int64]:
    """`values` as class indices `(N,)` below `num_classes`, if that is known."""
    array = as_array(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name} have shape {array.shape}; pass one class index per row")
    if not array.size:
        raise ValueError(f"{name} have no rows, and no metric can be computed from none; pass at least one")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} have dtype {array.dtype} and begin with {array[0]!r}; pass integer class indices")
    if (outside := (array < 0) | (array >= (num_classes or np.inf))).any():
        row = int(outside.argmax())
        classes = "start at 0" if num_classes is None else f"go from 0 to {num_classes - 1}"
        raise ValueError(f"row {row} of {name} is {array[row]}, and class indices {classes}; exclude such rows")
    return array.astype(np.int64, copy=False)


def class_pairs(
    predictions: ArrayLike, references: ArrayLike, num_classes: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicted and true classes, both `(N,)`."""
    predicted = class_indices("predictions", predictions, num_classes)
    labels = class_indices("references", references, num_classes)
    check_rows(predictions=predicted, references=labels)
    return predicted, labels


def check_rows(**columns: Sequence[Any] | NDArray[Any]) -> int:
    """The number of rows that all of the columns have."""
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"the columns have different numbers of rows ({found}); pass one value per row in each")
    return next(iter(sizes.values()))


def check_single_label_only(given: Mapping[str, Any]) -> None:
    """Raise ValueError if one of the arguments `given`, by name, which images of several classes do not have, is set.

    None is unset.
    """
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is for images of one class each, and multi_label=True was passed; leave it out")


def check_positive(name: str, value: Any) -> None:
    """Check that `value` is a positive integer."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive integer")


def check_groups(
    groups: Iterable[Any], known: Iterable[Any], needed: Iterable[Any], source: str, how: str = ""
) -> None:
    """Check that the groups with rows are all `known`, and all those `needed` have rows; `how` to add a group."""
    groups, known = list(groups), list(known)
    if unknown := sorted({group for group in groups if group not in known}, key=str):
        raise ValueError(
            f"rows have the groups {unknown}, which {source} does not name; it names {known}. Correct the groups or "
            f"add them to {source}{how}"
        )
    if empty := [group for group in needed if group not in groups]:
        raise ValueError(
            f"{source} names the groups {empty}, which have no rows, so that their accuracy is undefined; evaluate on "
            f"rows of every group or remove them from {source}"
        )


def check_shares(shares: Any, groups: Iterable[Any] | None) -> None:
    """Check that `training_shares` can weight the accuracies of `groups`, those with rows; None: not known yet."""
    if not isinstance(shares, Mapping):
        raise ValueError(f"training_shares is a {type(shares).__name__}; pass the share of every group by its name")
    for group, share in shares.items():
        if not (isinstance(share, Real) and math.isfinite(share) and float(share) >= 0):
            raise ValueError(f"training_shares[{group!r}] is {share!r}; pass the group's training share or row count")
    if groups is not None:
        needed = [group for group, share in shares.items() if share]
        how = ", with 0 for groups that training did not have"
        check_groups(groups, shares, needed, "training_shares", how)
    if not any(shares.values()):
        raise ValueError(f"training_shares is {dict(shares)!r}; give at least one group a share above 0")
