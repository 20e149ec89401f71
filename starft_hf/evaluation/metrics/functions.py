"""The metrics as pure functions of arrays; the classes of `evaluate` only hand them what was collected."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import compress
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray


GroupT = TypeVar("GroupT", bound=Hashable)

BLOCK_OF_SCORES = 2**20


def group_accuracy(
    predictions: ArrayLike,
    references: ArrayLike,
    groups: Iterable[Any],
    training_shares: Mapping[Any, float] | None = None,
    groups_expected: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Accuracies in groups, as in group DRO (arXiv 1911.08731).

    Args:
        predictions: predicted classes, `(N,)`.
        references: true classes, `(N,)`.
        groups: the group of every row, `(N,)`; all strings or all integers.
        training_shares: share of every group in the training set, for the adjusted accuracy: the accuracy on a set
            whose groups are as frequent as in training. Counts do as well. None leaves it out.
        groups_expected: the groups there are, each of which must have rows. None: those that occur.

    Returns:
        `accuracy` over all rows; `worst_group_accuracy`, and `worst_group` that has it; `group_accuracies` and
        `group_sizes` by group, in order; with `training_shares` also `group_adjusted_accuracy`. Accuracies are
        fractions.

    Raises:
        ValueError: if a group occurs that `groups_expected` or `training_shares` does not name, if a group that has
            to be there has no rows, if the shares are no shares, or if the columns do not fit one another.
    """
    predicted, labels = _pairs(predictions, references)
    right, sizes = count_groups(predicted == labels, groups)
    accuracies = accuracies_of(right, sizes)
    if groups_expected is not None:
        expected = list(groups_expected)
        _check_groups(sizes, known=expected, needed=expected, source="groups_expected")
    worst = min(accuracies, key=lambda group: accuracies[group])
    result = {
        "accuracy": right.total() / sizes.total(),
        "worst_group_accuracy": accuracies[worst],
        "worst_group": worst,
        "group_accuracies": accuracies,
        "group_sizes": {group: sizes[group] for group in accuracies},
    }
    if training_shares is not None:
        for group, share in training_shares.items():
            if not (math.isfinite(share) and share >= 0):
                raise ValueError(
                    f"training_shares[{group!r}] is {share}; a share is the part of the training set that is in the "
                    "group, or a count of its rows"
                )
        needed = [group for group, share in training_shares.items() if share]
        _check_groups(sizes, known=training_shares, needed=needed, source="training_shares")
        if not needed:
            raise ValueError(
                f"training_shares is {dict(training_shares)!r}, which leaves nothing to average over; give at least "
                "one group a share above 0"
            )
        result["group_adjusted_accuracy"] = adjusted_accuracy(accuracies, training_shares)
    return result


def count_groups(correct: ArrayLike, groups: Iterable[GroupT]) -> tuple[Counter[GroupT], Counter[GroupT]]:
    """Right predictions and rows of every group. Counts of batches add up.

    Args:
        correct: whether every row's prediction is right, `(N,)`.
        groups: the group of every row, `(N,)`; all strings or all integers.

    Raises:
        ValueError: if there are more or fewer groups than rows, or if a group is neither a string nor an integer.
    """
    hits = np.asarray(correct).tolist()
    # Python's own numbers and strings: they hash faster than numpy's, and print without their type.
    names = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    check_rows(predictions=hits, groups=names)
    strange = "groups hold {}; name every row's group by a string or an integer, one kind for all rows"
    try:
        sizes = Counter(names)
    except TypeError as error:
        raise ValueError(strange.format(f"values that cannot be counted ({error})")) from None
    for name in sizes:
        if not isinstance(name, (str, Integral)):
            raise ValueError(strange.format(repr(name)))
    if len({isinstance(name, str) for name in sizes}) > 1:
        raise ValueError(strange.format("strings and integers"))
    return Counter(compress(names, hits)), sizes


def accuracies_of(right: Mapping[GroupT, int], sizes: Mapping[GroupT, int]) -> dict[GroupT, float]:
    """The accuracy in every group of `sizes`, in order of the groups."""
    return {group: right.get(group, 0) / sizes[group] for group in sorted(sizes)}  # type: ignore[type-var]


def adjusted_accuracy(accuracies: Mapping[GroupT, float], shares: Mapping[GroupT, float]) -> float | None:
    """The average of the groups' accuracies weighted by their shares; None if none of them has a share.

    Shares of other groups do not count, and a group without one has 0.
    """
    present = {group: shares.get(group, 0.0) for group in accuracies}
    mass = math.fsum(present.values())
    return math.fsum(accuracies[group] * share for group, share in present.items()) / mass if mass else None


def expected_calibration_error(
    confidences: ArrayLike, predictions: ArrayLike, references: ArrayLike, num_bins: int = 15
) -> float:
    """Mean distance of accuracy and confidence over bins of equal width, weighted by their rows (arXiv 1706.04599).

    It is computed over the whole set: the mean of the errors of batches is another number.

    Args:
        confidences: probability of every predicted class, from 0 to 1, `(N,)`.
        predictions: predicted classes, `(N,)`.
        references: true classes, `(N,)`.
        num_bins: bins from confidence 0 to 1; each holds its upper edge.

    Raises:
        ValueError: if a confidence is no probability, or if the columns do not fit one another.
    """
    _check_positive("num_bins", num_bins)
    predicted, labels = _pairs(predictions, references)
    values = as_array("confidences", confidences)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"confidences have shape {values.shape} and dtype {values.dtype}; pass one probability per row"
        )
    check_rows(confidences=values, predictions=predicted)
    # Probabilities in float32 may end up this far above 1 where they were averaged.
    outside = ~((values >= 0) & (values <= 1 + 1e-6))
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"row {row} of confidences is {values[row]}; pass the probability of the predicted class, from 0 to 1"
        )
    return calibration_error(calibration_bins(values, predicted == labels, num_bins))


def calibration_bins(confidences: ArrayLike, correct: ArrayLike, num_bins: int) -> NDArray[np.float64]:
    """Rows, right predictions and summed confidence in bins of equal width, `(3, num_bins)`. Bins of batches add up.

    Args:
        confidences: from 0 to 1, `(N,)`.
        correct: whether every row's prediction is right, `(N,)`.
        num_bins: how many bins; each holds its upper edge, so that full confidence falls into the last one.
    """
    values = np.asarray(confidences, dtype=np.float64)
    # fmin and fmax send the NaN of a model that has diverged to some bin, whose sum it makes NaN.
    bins = np.fmax(np.fmin(np.ceil(values * num_bins), num_bins), 1).astype(np.int64) - 1
    weights = (None, np.asarray(correct, dtype=np.float64), values)
    return np.stack([np.bincount(bins, weight, minlength=num_bins).astype(np.float64) for weight in weights])


def calibration_error(bins: NDArray[np.float64]) -> float:
    """The expected calibration error of what `calibration_bins` counted."""
    rows, right, confidence = bins
    return float(np.abs(right - confidence).sum() / rows.sum())


def top_k_accuracy(scores: ArrayLike, references: ArrayLike, k: int = 5) -> float:
    """The share of rows whose true class is among the k of highest score.

    Of equal scores the class of lower index comes first, as with argmax, so that k = 1 gives the accuracy.

    Args:
        scores: any scores that grow with the probability, `(N, classes)`.
        references: true classes, `(N,)`.
        k: from 1 to the number of classes.

    Raises:
        ValueError: if `k` or a true class is outside the classes, if a score is NaN, or if the columns do not fit.
    """
    _check_positive("k", k)
    table = as_array("scores", scores)
    if table.ndim != 2 or not table.shape[1] or table.dtype.kind not in "fiu":
        raise ValueError(
            f"scores have shape {table.shape} and dtype {table.dtype}; pass one row of numbers per sample, "
            "with one number per class"
        )
    num_classes = table.shape[1]
    labels = class_indices("references", references, num_classes)
    check_rows(scores=table, references=labels)
    if k > num_classes:
        raise ValueError(
            f"k is {k} and there are {num_classes} classes, so that every row would count as right; pass a lower k"
        )
    # By blocks: comparisons of the whole table would take several times its memory.
    step = max(1, BLOCK_OF_SCORES // num_classes)
    places = np.arange(num_classes)
    hits = 0
    for start in range(0, len(table), step):
        block, own = table[start : start + step], labels[start : start + step, None]
        if np.isnan(block).any():
            row = start + int(np.isnan(block).any(1).argmax())
            raise ValueError(f"row {row} of scores holds NaN, which has no rank; find out where it comes from")
        score = np.take_along_axis(block, own, 1)
        ahead = (block > score) | ((block == score) & (places < own))
        hits += int(np.count_nonzero(np.count_nonzero(ahead, axis=1) < k))
    return hits / len(table)


def macro_f1(predictions: ArrayLike, references: ArrayLike, num_classes: int | None = None) -> float:
    """The plain mean over classes of F1, the harmonic mean of precision and recall (arXiv 1911.03347).

    Args:
        predictions: predicted classes, `(N,)`.
        references: true classes, `(N,)`.
        num_classes: average over this many classes, where one that is neither true nor predicted anywhere has F1 0.
            None: over the classes that are true or predicted somewhere.

    Raises:
        ValueError: if a class is outside the classes, or if the columns do not fit one another.
    """
    if num_classes is not None:
        _check_positive("num_classes", num_classes)
    predicted, labels = _pairs(predictions, references, num_classes)
    if num_classes is None:
        occurring, codes = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
        num_classes = len(occurring)
        predicted, labels = np.split(codes, 2)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    either = np.bincount(labels, minlength=num_classes) + np.bincount(predicted, minlength=num_classes)
    return float((2 * right / np.maximum(either, 1)).mean())


def class_indices(name: str, values: ArrayLike, num_classes: int | None = None) -> NDArray[np.int64]:
    """`values` as class indices `(N,)`.

    Args:
        name: what messages call them.
        values: integers.
        num_classes: how many classes there are; None: unknown.

    Raises:
        ValueError: if there are none, or if one is no integer from 0 to the number of classes.
    """
    array = as_array(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name} have shape {array.shape}; pass one class index per row")
    if not array.size:
        raise ValueError(f"{name} have no rows; there is nothing to compute a metric from")
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} have dtype {array.dtype} and begin with {array[0]!r}; pass class indices, as integers"
        )
    if array.min() < 0 or (num_classes is not None and array.max() >= num_classes):
        outside = array < 0 if num_classes is None else (array < 0) | (array >= num_classes)
        row = int(outside.argmax())
        classes = "start at 0" if num_classes is None else f"go from 0 to {num_classes - 1}"
        raise ValueError(f"row {row} of {name} is {array[row]}, and class indices {classes}; leave out such rows")
    return array.astype(np.int64, copy=False)


def check_rows(**columns: Sequence[Any] | NDArray[Any]) -> int:
    """The number of rows of columns that belong together.

    Raises:
        ValueError: if they have different numbers of rows.
    """
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"the columns differ in their numbers of rows ({told}); pass one value per row in each")
    return next(iter(sizes.values()))


def _pairs(
    predictions: ArrayLike, references: ArrayLike, num_classes: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    predicted = class_indices("predictions", predictions, num_classes)
    labels = class_indices("references", references, num_classes)
    check_rows(predictions=predicted, references=labels)
    return predicted, labels


def _check_groups(sizes: Mapping[Any, int], known: Iterable[Any], needed: Iterable[Any], source: str) -> None:
    known = list(known)
    if unknown := [group for group in sizes if group not in known]:
        raise ValueError(
            f"rows have the groups {unknown}, which {source} does not name; it names {known}. Correct the groups or "
            f"add these to {source}"
        )
    if empty := [group for group in needed if group not in sizes]:
        raise ValueError(
            f"{source} names the groups {empty}, which have no rows, so that their accuracy is undefined; evaluate on "
            f"rows of every group or take these out of {source}"
        )


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; pass a whole number from 1")


def as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """`values` as an array.

    Raises:
        ValueError: if rows differ in their lengths.
    """
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} make no array ({error}); pass rows of one length") from None
