"""The metrics as functions of arrays, and the counts of batches that they are computed from.

The first four take the arguments of the classes of the same names, and raise a ValueError for columns or arguments
that do not fit. `group_accuracy` returns a dictionary, as its class does; the others return a number.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from itertools import compress
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starft_hf.evaluation.validation import (
    as_array,
    check_groups,
    check_positive,
    check_rows,
    check_shares,
    class_indices,
    class_pairs,
)


GroupT = TypeVar("GroupT", bound=Hashable)

BLOCK_OF_SCORES = 2**20

# How far from what they stand for probabilities in float32 may end up, such as above 1 where they were averaged.
_ROUNDING = 1e-6


def group_accuracy(
    predictions: ArrayLike,
    references: ArrayLike,
    groups: Iterable[Any],
    training_shares: Mapping[Any, float] | None = None,
    groups_expected: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Accuracies in groups, as in group DRO (arXiv 1911.08731)."""
    predicted, labels = class_pairs(predictions, references)
    right, sizes = count_groups(predicted == labels, groups)
    accuracies = accuracies_of(right, sizes)
    if groups_expected is not None:
        expected = list(groups_expected)
        check_groups(sizes, expected, expected, "groups_expected")
    worst = min(accuracies, key=lambda group: accuracies[group])
    result = {
        "accuracy": right.total() / sizes.total(),
        "worst_group_accuracy": accuracies[worst],
        "worst_group": worst,
        "group_accuracies": accuracies,
        "group_sizes": {group: sizes[group] for group in accuracies},
    }
    if training_shares is not None:
        check_shares(training_shares, sizes)
        result["group_adjusted_accuracy"] = adjusted_accuracy(accuracies, training_shares)
    return result


def expected_calibration_error(
    confidences: ArrayLike, predictions: ArrayLike, references: ArrayLike, num_bins: int = 15
) -> float:
    """Mean distance of accuracy and confidence over bins of equal width, weighted by their rows (arXiv 1706.04599)."""
    check_positive("num_bins", num_bins)
    predicted, labels = class_pairs(predictions, references)
    values = as_array("confidences", confidences)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError(f"confidences have shape {values.shape} and dtype {values.dtype}; pass a probability per row")
    check_rows(confidences=values, predictions=predicted)
    if (outside := ~((values >= 0) & (values <= 1 + _ROUNDING))).any():
        row = int(outside.argmax())
        raise ValueError(f"row {row} of confidences is {values[row]}; pass the predicted class's probability (0 to 1)")
    return calibration_error(calibration_bins(values, predicted == labels, num_bins))


def top_k_accuracy(scores: ArrayLike, references: ArrayLike, k: int = 5) -> float:
    """The share of rows whose true class is among the k of highest score; of equal ones, lower indices come first."""
    check_positive("k", k)
    table = as_array("scores", scores)
    if table.ndim != 2 or not table.shape[1] or table.dtype.kind not in "fiu":
        raise ValueError(f"scores have shape {table.shape} and dtype {table.dtype}; pass numbers, (rows, classes)")
    num_classes = table.shape[1]
    labels = class_indices("references", references, num_classes)
    check_rows(scores=table, references=labels)
    if k > num_classes:
        raise ValueError(f"k is {k} and there are {num_classes} classes, so every row would be right; pass a lower k")
    # In blocks: comparisons of the whole table would take several times its memory.
    step = max(1, BLOCK_OF_SCORES // num_classes)
    places, hits = np.arange(num_classes), 0
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
    """The plain mean over classes of F1, the harmonic mean of precision and recall (arXiv 1911.03347)."""
    if num_classes is not None:
        check_positive("num_classes", num_classes)
    predicted, labels = class_pairs(predictions, references, num_classes)
    if num_classes is None:
        occurring, codes = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
        num_classes = len(occurring)
        predicted, labels = np.split(codes, 2)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    either = np.bincount(labels, minlength=num_classes) + np.bincount(predicted, minlength=num_classes)
    return float((2 * right / np.maximum(either, 1)).mean())


def count_groups(correct: ArrayLike, groups: Iterable[GroupT]) -> tuple[Counter[GroupT], Counter[GroupT]]:
    """Right predictions and rows of every group, from whether each row is right and its group. Batches add up."""
    hits = np.asarray(correct).tolist()
    # Python's own numbers and strings: they hash faster than numpy's, and print without their type.
    names = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    check_rows(predictions=hits, groups=names)
    message = "groups hold {}; name every row's group by a string or an integer, one kind for all rows"
    try:
        sizes = Counter(names)
    except TypeError as error:
        raise ValueError(message.format(f"values that cannot be counted ({error})")) from None
    if strange := [name for name in sizes if not isinstance(name, (str, Integral))]:
        raise ValueError(message.format(repr(strange[0])))
    if len({isinstance(name, str) for name in sizes}) > 1:
        raise ValueError(message.format("strings and integers"))
    return Counter(compress(names, hits)), sizes


def accuracies_of(right: Mapping[GroupT, int], sizes: Mapping[GroupT, int]) -> dict[GroupT, float]:
    """The accuracy in every group of `sizes`, in order of the groups."""
    return {group: right.get(group, 0) / sizes[group] for group in sorted(sizes)}  # type: ignore[type-var]


def adjusted_accuracy(accuracies: Mapping[GroupT, float], shares: Mapping[GroupT, float]) -> float | None:
    """The average of the groups' accuracies weighted by their shares (default 0); None if none of them has one."""
    present = {group: shares.get(group, 0.0) for group in accuracies}
    mass = math.fsum(present.values())
    return math.fsum(accuracies[group] * share for group, share in present.items()) / mass if mass else None


def calibration_bins(confidences: ArrayLike, correct: ArrayLike, num_bins: int) -> NDArray[np.float64]:
    """Rows, right predictions and summed confidence in bins of equal width, `(3, num_bins)`. Batches add up.

    Each bin holds its upper edge, so that confidence 1 falls into the last one. So do confidences that rounding in
    float32 has moved above an edge, such as that of five equal logits above 3/15.
    """
    values = np.asarray(confidences, dtype=np.float64)
    # fmin and fmax send the NaN of a model that has diverged to some bin, whose sum becomes NaN.
    bins = np.fmax(np.fmin(np.ceil((values - _ROUNDING) * num_bins), num_bins), 1).astype(np.int64) - 1
    weights = (None, np.asarray(correct, dtype=np.float64), values)
    return np.stack([np.bincount(bins, weight, minlength=num_bins).astype(np.float64) for weight in weights])


def calibration_error(bins: NDArray[np.float64]) -> float:
    """The expected calibration error of the counts of `calibration_bins`."""
    rows, right, confidence = bins
    return float(np.abs(right - confidence).sum() / rows.sum())
