"""Bootstrap samples of images, and the accuracy in the worst group of each."""

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_RESAMPLES = 500


def resampled(groups: Ints, generator: np.random.Generator) -> Floats:
    """How often every image is in each of the bootstrap samples, `(samples, N)`; groups keep their sizes."""
    counts = np.zeros((_RESAMPLES, len(groups)))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        counts[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), _RESAMPLES)
    return counts


def worst_group(right: Floats, groups: Ints, counts: Floats) -> Floats:
    """The accuracy in the worst group, `(samples, candidates)`; a group without rows in a sample does not count.

    Args:
        right: how often each image is classified correctly by every candidate, `(candidates, N)`.
        groups: group indices `(N,)`.
        counts: how often every image is in each of the samples, `(samples, N)`.
    """
    accuracies = []
    for group in np.unique(groups):
        rows = groups == group
        total = counts[:, rows].sum(1, keepdims=True)
        share = counts[:, rows] @ right[:, rows].T / np.maximum(total, 1)
        accuracies.append(np.where(total > 0, share, np.inf))
    worst: Floats = np.min(accuracies, axis=0)
    return np.where(np.isfinite(worst), worst, 0.0)
