"""Intervals of accuracies by their counts, also where none or all images are right and where groups are few."""

import numpy as np
from scipy.special import betaincinv

from starft_hf.evaluation.bootstrap import Floats, Ints


CONFIDENCE = 0.95


def accuracy_interval(accuracy: float, images: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval (Clopper and Pearson 1934) of an accuracy from 0 to 1, of so many independent images.

    It holds at least as often as `confidence` says. That of a bootstrap has no width where all images are right.
    """
    right, tail = accuracy * images, (1 - confidence) / 2
    wrong = images - right
    low = float(betaincinv(right, wrong + 1, tail)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, wrong, 1 - tail)) if wrong > 0 else 1.0
    return low, high


def worst_group_interval(right: Floats, groups: Ints, clusters: Ints | None = None) -> tuple[float, float]:
    """An interval of the accuracy in the group where it is lowest, with at least 95% confidence.

    The lowest of several measured accuracies is expected to be lower than that of the worst group, and its bootstrap
    samples are lower still. So the ends are the lowest of intervals that hold for all groups at once (Sidak 1967).

    Args:
        right: how often each image is classified correctly, from 0 to 1, `(N,)`.
        groups: group indices `(N,)`.
        clusters: of images that are not independent of each other, `(N,)`.
    """
    names = np.unique(groups)
    confidence = CONFIDENCE ** (1 / len(names))
    intervals = []
    for group in names:
        rows = groups == group
        count = float(rows.sum()) if clusters is None else independent_images(right[rows], clusters[rows])
        intervals.append(accuracy_interval(float(right[rows].mean()), count, confidence))
    return min(low for low, _ in intervals), min(high for _, high in intervals)


def independent_images(right: Floats, clusters: Ints) -> float:
    """How many independent images say as much about the accuracy as these, of clusters (Kish 1965).

    It is between the numbers of clusters and of images; the former if the clusters show no variance.
    """
    _, indices = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(indices)
    count, accuracy = len(sizes), float(right.mean())
    residuals = np.bincount(indices, weights=right) - accuracy * sizes
    variance = count / max(count - 1, 1) * float((residuals**2).sum()) / len(right) ** 2
    if count == 1 or variance == 0:
        return float(count)
    return float(np.clip(accuracy * (1 - accuracy) / variance, count, len(right)))
