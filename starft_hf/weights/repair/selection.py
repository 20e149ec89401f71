"""The choice of a repair: cross-validation, and a bootstrap that corrects for having chosen the best of many."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from starft_hf.evaluation.bootstrap import resampled, worst_group
from starft_hf.evaluation.intervals import worst_group_interval
from starft_hf.weights.repair.candidates import Candidate
from starft_hf.weights.repair.embedded import Embedded, Floats, Ints


# Every group needs as many images, so that each fold has one of it.
FOLDS = 5
_REPEATS = 2
# From here on, one division into folds is enough.
_LARGE = 300
# Divisions of clusters of several classes into folds, until no class is in one fold only.
_TRIES = 100


@dataclass(frozen=True)
class Score:
    """A candidate on images that it was not fitted to; accuracies are from 0 to 1.

    Attributes:
        average: over all images.
        worst_group: in the group where it is lowest.
        interval: of `worst_group`, with 95% confidence; see `worst_group_interval`.
    """

    average: float
    worst_group: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        chosen: the index of the candidate; 0, that of no repair, if the best gains no more than one standard error.
        best: the index of the candidate with the best worst group.
        scores: of every candidate.
        gain: what the best one gains in worst-group accuracy over no repair, corrected for being the best of many.
        standard_error: of the difference.
    """

    chosen: int
    best: int
    scores: tuple[Score, ...]
    gain: float
    standard_error: float


def choose(data: Embedded, candidates: Sequence[Candidate], seed: int = 0, *, may_keep: bool = True) -> Choice:
    """Choose among candidates, the first of which repairs nothing, by the cross-validated worst group.

    The best of many candidates looks better than it is. As in BBC-CV (arXiv 1708.07180), the images are resampled,
    the best candidate of each sample is found, and its gain is measured on the images outside of the sample. It is
    taken if the mean gain is more than one standard error; unless the model `may_keep` its weights, in any case.
    Where images have clusters, these are resampled, and none is in two folds. A sample may then lack a group.
    """
    right = out_of_fold(data, candidates, seed)
    generator = np.random.default_rng(seed)
    inside = _samples(data, generator)
    outside = (inside == 0).astype(np.float64)
    worst, worst_outside = (worst_group(right, data.groups, counts) for counts in (inside, outside))
    everything = np.ones((1, len(data.groups)))
    own = worst_group(right, data.groups, everything)[0]
    first = 0 if may_keep else 1
    best, found = first + int(own[first:].argmax()), first + worst[:, first:].argmax(1)
    gain = float(np.mean(worst_outside[np.arange(len(found)), found] - worst_outside[:, 0]))
    error = float(np.std(worst[:, best] - worst[:, 0], ddof=1))
    scores = tuple(
        Score(float(each.mean()), float(lowest), worst_group_interval(each, data.groups, data.clusters))
        for each, lowest in zip(right, own, strict=True)
    )
    return Choice(best if gain > error or not may_keep else 0, best, scores, gain if best else 0.0, error)


def out_of_fold(data: Embedded, candidates: Sequence[Candidate], seed: int) -> Floats:
    """How often each image is classified correctly by a candidate that was fitted without it, `(candidates, N)`."""
    repeats = 1 if len(data.labels) > _LARGE else _REPEATS
    right = np.zeros((len(candidates), len(data.labels)))
    # Thousands of small products, for which several threads wait for each other longer than they compute.
    with threadpool_limits(1, user_api="blas"):
        for repeat in range(repeats):
            folds = _folds(data, np.random.default_rng((seed, repeat)))
            for fold in range(FOLDS):
                held_out, rows = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
                for index, candidate in enumerate(candidates):
                    logits = data.logits(candidate.fit(data, rows))[held_out]
                    right[index, held_out] += logits.argmax(1) == data.labels[held_out]
    return right / repeats


def _samples(data: Embedded, generator: np.random.Generator) -> Floats:
    """How often every image is in each of the bootstrap samples.

    Groups keep their sizes. With clusters, every class keeps their number, unless they are of several classes.
    """
    if data.clusters is None:
        return resampled(data.groups, generator)
    classes = _classes_of(data.clusters, data.labels)
    strata = np.zeros(data.clusters.max() + 1, dtype=np.int64) if classes is None else classes
    return resampled(strata, generator)[:, data.clusters]


def _folds(data: Embedded, generator: np.random.Generator) -> Ints:
    """The fold of every image; images of one class and group, and those of one class, are spread evenly.

    With clusters, images of one cluster are in one fold, and those of one class are spread evenly.
    """
    if data.clusters is None:
        return _dealt(generator, data.groups, data.labels)
    classes = _classes_of(data.clusters, data.labels)
    if classes is None:
        return folds_of_mixed_clusters(data.clusters, data.labels, generator)
    return _dealt(generator, classes)[data.clusters]


def _dealt(generator: np.random.Generator, *keys: Ints) -> Ints:
    """The fold of everything; what has the same keys, of which the last counts most, is spread evenly."""
    order = np.lexsort((generator.random(len(keys[0])), *keys))
    folds = np.empty(len(order), dtype=np.int64)
    folds[order] = np.arange(len(order)) % FOLDS
    return folds


def _classes_of(clusters: Ints, labels: Ints) -> Ints | None:
    """The class of every cluster; None if one is of several classes."""
    classes = labels[np.unique(clusters, return_index=True)[1]]
    return classes if (classes[clusters] == labels).all() else None


def folds_of_mixed_clusters(clusters: Ints, labels: Ints, generator: np.random.Generator) -> Ints:
    """The fold of every image: images of one cluster, of whatever classes, are in one fold; every class is in several.

    Raises:
        ValueError: if no such division was found.
    """
    folds = np.empty(len(labels), dtype=np.int64)
    # With fewer clusters, or fewer images of every class, some folds stay empty.
    parts = min(FOLDS, len(np.unique(clusters)), int(np.bincount(labels).max()))
    for _ in range(_TRIES):
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=int(generator.integers(2**31)))
        with warnings.catch_warnings():
            # Rare classes need not be in all folds.
            warnings.filterwarnings("ignore", message="The least populated class")
            for fold, (_, rows) in enumerate(splitter.split(labels, labels, clusters)):
                folds[rows] = fold
        pairs = np.unique(np.stack([labels, folds]), axis=1)
        if np.bincount(pairs[0])[np.unique(labels)].min() > 1:
            return folds
    raise ValueError(
        "the images cannot be divided so that those with one value of cluster_column stay together and every class is "
        "in several parts; add images of other values, or leave cluster_column out"
    )
