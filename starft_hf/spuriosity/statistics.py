"""How attributes of images go together with their labels, and whether chance would do the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


# What is the same number up to rounding is as large.
_ROUNDING = 1e-12

# Of the labels that an attribute is said to go with or to stay away from, this share at most is expected to be chance.
_FALSE_LABELS = 0.05


@dataclass(frozen=True)
class Associations:
    """How C labels go together with A attributes.

    Attributes:
        effects: share of a label's images that have an attribute, less that of all other images, `(C, A)`.
        shares: share of a label's images that have an attribute, `(C, A)`.
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
    """How many images have a label and an attribute, `(num_classes, num_attributes)`.

    Args:
        labels: `(N,)`.
        assigned: for each aspect the attribute that every image has, `(N,)`, or -1 for none.
        num_classes: labels there are.
        num_attributes: attributes there are, of all aspects together.
    """
    # One column more, for images without an attribute.
    width = num_attributes + 1
    flat = np.zeros(num_classes * width, dtype=np.int64)
    for attributes in assigned:
        flat += np.bincount(labels * width + attributes % width, minlength=len(flat))
    return flat.reshape(num_classes, width)[:, :num_attributes]


class Information:
    """Mutual information of labels and attributes, from counts, in nats.

    With the numbers of images per label and per attribute fixed, as under permutation, what changes are a few terms
    `n log n`, which are looked up.

    Args:
        class_sizes: images per label, `(C,)`.
        attribute_sizes: images per attribute, `(A,)`.
    """

    def __init__(self, class_sizes: NDArray[np.int64], attribute_sizes: NDArray[np.int64]):
        self.total = int(class_sizes.sum())
        numbers = np.arange(self.total + 1, dtype=np.float64)
        self._terms = numbers * np.log(np.maximum(numbers, 1))
        self._classes = class_sizes[:, None]
        self._attributes = attribute_sizes[None, :]
        terms = self._terms
        of_attributes = terms[self._attributes] + terms[self.total - self._attributes] - terms[self.total]
        of_classes = terms[self._classes]
        self._attribute_constant = of_attributes[0] + of_classes.sum()
        self._cell_constant = of_attributes + of_classes + terms[self.total - self._classes]

    def __call__(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """That of every cell, `(C, A)`, and of every attribute with the label, `(A,)`."""
        terms = self._terms
        within = terms[counts] + terms[self._classes - counts]
        without = self._attributes - counts
        outside = terms[without] + terms[self.total - self._classes - without]
        cells = (within + outside - self._cell_constant) / self.total
        attributes = (within.sum(0) - self._attribute_constant) / self.total
        # Rounding may leave a negative number where there is none.
        return np.maximum(cells, 0), np.maximum(attributes, 0)


def measure_associations(
    labels: NDArray[np.int64],
    assigned: Sequence[NDArray[np.int64]],
    num_classes: int,
    num_attributes: int,
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> Associations:
    """Measure how labels and attributes go together, and test it by permuting the labels.

    A p-value is the share of permutations, the data themselves included, whose largest information is at least as
    large. Being compared with the largest of all attributes (of all cells), it needs no further correction for their
    number, and takes into account that they depend on each other.

    Args:
        labels: `(N,)`.
        assigned: for each aspect the attribute that every image has, `(N,)`, or -1 for none.
        num_classes: labels there are.
        num_attributes: attributes there are, of all aspects together.
        permutations: how many; p-values are no smaller than 1 / (permutations + 1).
        seed: of the permutations.

    Source: single-step maxT of Westfall and Young, Resampling-Based Multiple Testing, 1993.
    """
    counts = count_cells(labels, assigned, num_classes, num_attributes)
    class_sizes = np.bincount(labels, minlength=num_classes)
    attribute_sizes = counts.sum(0)
    information = Information(class_sizes, attribute_sizes)
    cells, attributes = information(counts)
    largest = np.empty((permutations, 2))
    as_large = np.ones(cells.shape)
    generator = np.random.default_rng(seed)
    for row in largest:
        shuffled = generator.permutation(labels)
        by_chance = information(count_cells(shuffled, assigned, num_classes, num_attributes))
        as_large += by_chance[0] >= cells - _ROUNDING
        row[:] = [values.max(initial=0) for values in by_chance]
    shares = counts / np.maximum(class_sizes, 1)[:, None]
    others = (attribute_sizes - counts) / np.maximum(len(labels) - class_sizes, 1)[:, None]
    return Associations(
        # Of a label that does not occur nothing can be said.
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
    """Which labels an attribute makes a difference to, `(C, A)`, for attributes that go together with the labels.

    Of many labels with few images each, some differ by chance. Labels of small p-values are chosen per attribute such
    that of those chosen 5% at most are expected to be chance; the one with most information always is.

    Args:
        associations: as measured.
        min_effect: differences that are smaller do not count.

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
    """How far two ways of telling attributes agree on which images have each, as Cohen's kappa, `(A,)`.

    0 is what chance gives, 1 is perfect. An attribute that neither finds anywhere, or that both find everywhere,
    gives 0, for nothing speaks for it.

    Args:
        first: for each aspect the attribute that every image has by the one way, `(N,)`, or -1 for none.
        second: the same by the other way.
        num_attributes: attributes there are, of all aspects together.

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
