"""How attributes of images are correlated with their labels, and tests against chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Numbers that differ by less count as equal.
_ROUNDING = 1e-12
# False discovery rate of the labels that an attribute is correlated with.
_FALSE_LABELS = 0.05


@dataclass(frozen=True)
class Associations:
    """How C labels are correlated with A attributes: `(C, A)`, but for `information` and `p_values`, `(A,)`."""

    # The fraction of a label's images that have an attribute, and that less the fraction of all other images.
    shares: Floats
    effects: Floats
    # Mutual information in nats: of having a label and having an attribute, and of the label and having an attribute.
    cell_information: Floats
    information: Floats
    # How often chance gives any cell, any attribute and, not corrected for their number, this very cell as much.
    cell_p_values: Floats
    p_values: Floats
    label_p_values: Floats


def count_cells(labels: Ints, assigned: Sequence[Ints], num_classes: int, num_attributes: int) -> Ints:
    """Images per label and attribute, `(num_classes, num_attributes)`; arguments as in `measure_associations`."""
    # The last column is for images without an attribute.
    width = num_attributes + 1
    flat = np.zeros(num_classes * width, dtype=np.int64)
    for attributes in assigned:
        flat += np.bincount(labels * width + attributes % width, minlength=len(flat))
    return flat.reshape(num_classes, width)[:, :num_attributes]


def mutual_information(counts: Ints, class_sizes: Ints, attribute_sizes: Ints, terms: Floats) -> tuple[Floats, Floats]:
    """Mutual information in nats, of every label and attribute `(C, A)`, and of all labels and an attribute `(A,)`."""
    # This is computed for every permutation, hence the table of n log n, for n up to the number of images.
    total = len(terms) - 1
    class_sizes, others = class_sizes[:, None], attribute_sizes - counts
    within = terms[counts] + terms[class_sizes - counts]
    outside = terms[others] + terms[total - class_sizes - others]
    of_attribute = terms[attribute_sizes] + terms[total - attribute_sizes] - terms[total]
    cells = within + outside - of_attribute - (terms[class_sizes] + terms[total - class_sizes])
    attributes = within.sum(0) - of_attribute - terms[class_sizes].sum()
    # Rounding may give a negative number where it is 0.
    return np.maximum(cells / total, 0), np.maximum(attributes / total, 0)


def measure_associations(
    labels: Ints, assigned: Sequence[Ints], num_classes: int, num_attributes: int, *, permutations: int, seed: int = 0
) -> Associations:
    """Measure how labels and attributes are correlated, and test it by permuting the labels.

    A p-value is the fraction of permutations, the data themselves included, whose largest information is at least as
    large. Because the largest is taken over all attributes (or cells), no further correction for their number is
    needed, and their dependence is taken into account. `assigned` has for each aspect the attribute of every image,
    `(N,)`, or -1 for none.

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
        shares=shares,
        # A label that does not occur has no effects.
        effects=np.where(class_sizes[:, None] > 0, shares - others, 0),
        cell_information=cells,
        information=attributes,
        cell_p_values=_p_values(cells, largest[:, 0]),
        p_values=_p_values(attributes, largest[:, 1]),
        label_p_values=as_large / (1 + permutations),
    )


def _p_values(values: Floats, largest: Floats) -> Floats:
    as_large = len(largest) - np.searchsorted(np.sort(largest), values - _ROUNDING)
    return (1 + as_large) / (1 + len(largest))


def labels_concerned(associations: Associations, min_effect: float) -> NDArray[np.bool_]:
    """Which labels an attribute makes a difference to, `(C, A)`, for attributes that are correlated with the labels.

    Of many labels with few images each, some differ by chance. Labels with small p-values are chosen per attribute at
    a false discovery rate of 5%; the label with most information is always chosen. Effects are at least `min_effect`.

    Source: Benjamini and Hochberg, Controlling the false discovery rate, 1995.
    """
    p_values, (labels, attributes) = associations.label_p_values, associations.effects.shape
    if not associations.effects.size:
        return np.zeros((labels, attributes), dtype=bool)
    bounds = _FALSE_LABELS * np.arange(1, labels + 1)[:, None] / labels
    ascending = np.sort(p_values, axis=0)
    limit = np.where(ascending <= bounds, ascending, 0).max(0)
    most = np.arange(labels)[:, None] == associations.cell_information.argmax(0)
    return ((p_values <= limit) | most) & (np.abs(associations.effects) >= min_effect)


def agreement(first: Sequence[Ints], second: Sequence[Ints], num_attributes: int) -> Floats:
    """How far two assignments agree on which images have each attribute, as Cohen's kappa, `(A,)`.

    0 is chance level, 1 is perfect. An attribute that both assign nowhere or everywhere gives 0.

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
