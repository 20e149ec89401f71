"""What is drawn as lines, over the seeds of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from starft_hf.evaluation.results import CurvePoint
from starft_hf.report.data import TrainingPoint
from starft_hf.report.table import Entry


# A line on a phone has no more pixels than this.
_POINTS = 300


@dataclass(frozen=True)
class Line:
    """A curve of one model.

    Attributes:
        x: where the curves of all seeds are known, `(N,)`.
        y: their mean there, `(N,)`.
        seeds: the curve of every seed, as x and y.
        merged: how many neighbouring points of a curve one point here is the mean of.
    """

    x: np.ndarray
    y: np.ndarray
    seeds: tuple[tuple[np.ndarray, np.ndarray], ...]
    merged: int = 1


def training_line(entry: Entry, measure: Callable[[TrainingPoint], float]) -> Line | None:
    """A measure of the training logs by step, or None without a log."""
    seeds = [{point.step: measure(point) for point in run.log} for run in entry.runs if run.log]
    if not seeds:
        return None
    steps = [step for step in seeds[0] if all(step in seed for seed in seeds)]
    means = [sum(seed[step] for seed in seeds) / len(seeds) for step in steps]
    merged = max(1, -(-max(len(seed) for seed in seeds) // _POINTS))
    thin = tuple((_merge(list(seed), merged), _merge(list(seed.values()), merged)) for seed in seeds)
    return Line(_merge(steps, merged), _merge(means, merged), thin, merged)


def _merge(values: Sequence[float], merged: int) -> np.ndarray:
    return np.array([np.mean(values[start : start + merged]) for start in range(0, len(values), merged)])


def wise_ft_curve(entry: Entry) -> list[CurvePoint]:
    """The mean WiSE-FT curve of the seeds that have one, at the shares of weights that all of them have."""
    seeds = [{point.alpha: point for point in run.curve} for run in entry.runs if run.curve]
    shared = [alpha for alpha in seeds[0] if all(alpha in seed for seed in seeds)] if seeds else []
    return [
        CurvePoint(
            alpha,
            sum(seed[alpha].in_distribution for seed in seeds) / len(seeds),
            sum(seed[alpha].out_of_distribution for seed in seeds) / len(seeds),
        )
        for alpha in shared
    ]


@dataclass(frozen=True)
class Bins:
    """The reliability bins of one model, the predictions of all seeds together.

    Attributes:
        count: predictions per bin and seed, `(bins,)`.
        confidence: their mean confidence, `(bins,)`; NaN in an empty bin.
        accuracy: the share of them that is right, `(bins,)`; NaN in an empty bin.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """Which bins have enough predictions for their accuracy to mean something, `(bins,)`."""
        return (self.count > 0) & (self.count >= FEWEST_IN_BIN * self.count.sum())


# Bins with a smaller share of the predictions are left out of diagrams: few predictions make any accuracy.
FEWEST_IN_BIN = 0.01


def pooled_bins(entry: Entry, dataset: str) -> Bins | None:
    """The reliability bins of a model on a data set, or None where no seed has any."""
    seeds = [run.results[dataset].bins for run in entry.runs if run.results[dataset].bins]
    if not seeds:
        return None
    counts = np.array([[part.count for part in bins] for bins in seeds], dtype=float)
    total = counts.sum(0)

    def mean(values: list[list[float]]) -> np.ndarray:
        # An empty bin's confidence means nothing, even where it is NaN.
        weighted = np.where(counts > 0, counts * np.array(values), 0).sum(0)
        return np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)

    return Bins(
        count=total / len(seeds),
        confidence=mean([[part.confidence for part in bins] for bins in seeds]),
        accuracy=mean([[part.accuracy for part in bins] for bins in seeds]),
    )
