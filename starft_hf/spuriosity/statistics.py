"""How attributes of images are correlated with their labels, and tests against chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


# Numbers that differ by less count as equal.
_ROUNDING = 1e-12

# False discovery rate of the labels that an attribute is correlated with.
_FALSE_LABELS = 0.05


@dataclass(frozen=True)
class Associations:
    """How C labels are correlated with A attributes.

    Attributes:
        effects: fraction of a label's images that have an attribute, less that of all other images, `(C, A)`.
        shares: fraction of a label's images that have an attribute, `(C, A)`.
        cell_information: mutual information of having a label and having an attribute, in nats, `(C, A)`.
        information: mutual information of the label and having an attribute, in nats, `(A,)`.
        cell_p_values: how often chance gives a cell, anywhere in the table, as much information, `(C, A)`.
        p_values: how often chance gives any attribute as much information, `(A,)`.
        label_p_values: how often chance gives this very cell as much information, `(C, A)`; not corrected.
    """

    effects: NDArray[np.float64]
    shares: NDArray[np.float64]
    cell_information: NDArray[np.float64]
    information: NDArray[np.float64]
    cell_p_values: NDArray[np.float64]
    p_values: NDArray[np.float64]
    label_p_values: NDArray[np.float64]


def count_cells(
    labels: NDArray[np.int64], assigned: Sequence[NDArray[np.int64]], num_classes: int, num_attributes: int
) -> NDArray[np.int64]:
    """Images per label and attribute, `(num_classes, num_attributes)`; arguments as in `measure_associations`."""
    # The last column is for images without an attribute.
    width = num_attributes + 1
    flat = np.zeros(num_classes * width, dtype=np.int64)
    for attributes in assigned:
        flat += np.bincount(labels * width + attributes % width, minlength=len(flat))
    return flat.reshape(num_classes, width)[:, :num_attributes]


def mutual_information(
    counts: NDArray[np.int64], class_sizes: NDArray[np.int64], attribute_sizes: NDArray[np.int64], terms: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mutual information in nats, of every label and attribute `(C, A)`, and of all labels and an attribute `(A,)`.

    Args:
        counts: images with a label and an attribute, `(C, A)`.
        class_sizes: images per label, `(C,)`.
        attribute_sizes: images per attribute, `(A,)`.
        terms: `n log n` for n from 0 to the number of images N, `(N + 1,)`: a table, because this is computed for
            every permutation.
    """
    total = len(terms) - 1
    class_sizes, others = class_sizes[:, None], attribute_sizes - counts
    within = terms[counts] + terms[class_sizes - counts]
    outside = terms[others] + terms[total - class_sizes - others]
    of_attribute = terms[attribute_sizes] + terms[total - attribute_sizes] - terms[total]
    cells = within + outside - of_attribute - terms[class_sizes] - terms[total - class_sizes]
    attributes = within.sum(0) - of_attribute - terms[class_sizes].sum()
    # Rounding may give a negative number where it is 0.
    return np.maximum(cells / total, 0), np.maximum(attributes / total, 0)


def measure_associations(
    labels: NDArray[np.int64],
    assigned: Sequence[NDArray[np.int64]],
    num_classes: int,
    num_attributes: int,
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> Associations:
    """Measure how labels and attributes are correlated, and test it by permuting the labels.

    A p-value is the fraction of permutations, the data themselves included, whose largest information is at least as
    large. Because the largest is taken over all attributes (or cells), no further correction for their number is
    needed, and their dependence is taken into account.

    Args:
        labels: `(N,)`.
        assigned: for each aspect the attribute that every image has, `(N,)`, or -1 for none.
        num_classes: number of labels.
        num_attributes: number of attributes, of all aspects together.
        permutations: their number; p-values are no smaller than 1 / (permutations + 1).
        seed: of the permutations.

    Source: single-step maxT of Westfall and Young, Resampling-Based Multiple Testing, 1993.
    """
    counts = count_cells(labels, assigned, num_classes, num_attributes)
    class_sizes = np.bincount(labels, minlength=num_classes)
    attribute_sizes = counts.sum(0)
    numbers = np.arange(len(labels) + 1, dtype=np.float64)
    fixed = class_sizes, attribute_sizes, numbers * np.log(np.maximum(numbers, 1))
    cells, attributes = mutual_information(counts, *fixed)
    largest = np.empty((permutations, 2))
    as_large = np.ones(cells.shape)
    generator = np.random.default_rng(seed)
    for row in largest:
        shuffled = generator.permutation(labels)
        by_chance = mutual_information(count_cells(shuffled, assigned, num_classes, num_attributes), *fixed)
        as_large += by_chance[0] >= cells - _ROUNDING
        row[:] = [values.max(initial=0) for values in by_chance]
    shares = counts / np.maximum(class_sizes, 1)[:, None]
    others = (attribute_sizes - counts) / np.maximum(len(labels) - class_sizes, 1)[:, None]
    return Associations(
        # A label that does not occur has no effects.
        effects=np.where(class_sizes[:, None] > 0, shares - others, 0),
        shares=shares,
        cell_information=cells,
        information=attributes,
        cell_p_values=_p_values(cells, largest[:, 0]),
        p_values=_p_values(attributes, largest[:, 1]),
        label_p_values=as_large / (1 + permutations),
    )


def _p_values(values: NDArray[np.float64], largest: NDArray[np.float64]) -> NDArray[np.float64]:
    as_large = len(largest) - np.searchsorted(np.sort(largest), values - _ROUNDING)
    p_values: NDArray[np.float64] = (1 + as_large) / (1 + len(largest))
    return p_values


def labels_concerned(associations: Associations, min_effect: float) -> NDArray[np.bool_]:
    """Which labels an attribute makes a difference to, `(C, A)`, for attributes that are correlated with the labels.

    Of many labels with few images each, some differ by chance. Labels with small p-values are chosen per attribute at
    a false discovery rate of 5%; the label with most information is always chosen.

    Args:
        associations: as measured.
        min_effect: smallest difference that counts.

    Source: Benjamini and Hochberg, Controlling the false discovery rate, 1995.
    """
    p_values, (labels, attributes) = associations.label_p_values, associations.effects.shape
    if not associations.effects.size:
        return np.zeros((labels, attributes), dtype=bool)
    bounds = _FALSE_LABELS * np.arange(1, labels + 1)[:, None] / labels
    ascending = np.sort(p_values, axis=0)
    limit = np.where(ascending <= bounds, ascending, 0).max(0)
    most = np.arange(labels)[:, None] == associations.cell_information.argmax(0)
    chosen: NDArray[np.bool_] = ((p_values <= limit) | most) & (np.abs(associations.effects) >= min_effect)
    return chosen


def agreement(
    first: Sequence[NDArray[np.int64]], second: Sequence[NDArray[np.int64]], num_attributes: int
) -> NDArray[np.float64]:
    """How far two assignments agree on which images have each attribute, as Cohen's kappa, `(A,)`.

    0 is chance level, 1 is perfect. An attribute that both assign nowhere or everywhere gives 0.

    Args:
        first: for each aspect the attribute of every image, `(N,)`, or -1 for none.
        second: the same of the other assignment.
        num_attributes: of all aspects together.

    Source: Cohen, A coefficient of agreement for nominal scales, 1960.
    """
    total = len(first[0]) if first else 1
    width = num_attributes + 1
    both, one, other = (np.zeros(width) for _ in range(3))
    for left, right in zip(first, second, strict=True):
        one += np.bincount(left % width, minlength=width)
        other += np.bincount(right % width, minlength=width)
        both += np.bincount(left[left == right] % width, minlength=width)
    observed = 1 - (one + other - 2 * both) / total
    expected = (one * other + (total - one) * (total - other)) / total**2
    kappa = np.divide(observed - expected, 1 - expected, out=np.zeros(width), where=expected < 1)
    return kappa[:num_attributes]
