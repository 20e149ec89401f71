"""The curves and bins that figures draw, over the seeds of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starft_hf.evaluation.results import CurvePoint
from starft_hf.report.data import TrainingPoint
from starft_hf.report.rows import Entry


# About as many points as a phone has pixels.
_MAX_POINTS = 300

# Bins with a smaller fraction of the predictions are not drawn: a few predictions make any accuracy.
MIN_BIN_FRACTION = 0.01


@dataclass(frozen=True)
class Line:
    """The mean curve `(N,)` of a model and those of its seeds; a point is the mean of `merged` entries of the log.

    `interpolated` says whether some seeds did not log all steps of the mean curve.
    """

    x: np.ndarray
    y: np.ndarray
    seeds: tuple[tuple[np.ndarray, np.ndarray], ...]
    merged: int = 1
    interpolated: bool = False


def training_line(entry: Entry, measure: Callable[[TrainingPoint], float]) -> Line:
    """A measure of the training logs, of which there is at least one, by step.

    The mean is at every step that a seed logged, from the last of their first steps to the first of their last ones;
    seeds that did not log a step are interpolated there.
    """
    seeds = [{point.step: measure(point) for point in run.log} for run in entry.runs if run.log]
    first, last = max(min(seed) for seed in seeds), min(max(seed) for seed in seeds)
    steps = sorted({step for seed in seeds for step in seed if first <= step <= last})
    means = [sum(_at(seed, step) for seed in seeds) / len(seeds) for step in steps]
    interpolated = any(step not in seed for seed in seeds for step in steps)
    merged = max(1, -(-max(len(steps), *(len(seed) for seed in seeds)) // _MAX_POINTS))

    def merge(values: Sequence[float]) -> np.ndarray:
        return np.array([np.mean(values[start : start + merged]) for start in range(0, len(values), merged)])

    thin = tuple((merge(list(seed)), merge(list(seed.values()))) for seed in seeds)
    return Line(merge(steps), merge(means), thin, merged, interpolated)


def _at(seed: Mapping[int, float], step: int) -> float:
    """What a seed logged at a step, or would have between two that it logged."""
    return seed[step] if step in seed else float(np.interp(step, list(seed), list(seed.values())))


def wise_ft_curve(entry: Entry) -> list[CurvePoint]:
    """The mean WiSE-FT curve of the seeds that have one, at the alphas that all of them have."""
    seeds = [{point.alpha: point for point in run.curve} for run in entry.runs if run.curve]
    alphas = [alpha for alpha in seeds[0] if all(alpha in seed for seed in seeds)] if seeds else []
    points = [[(seed[alpha].average, seed[alpha].worst_group) for seed in seeds] for alpha in alphas]
    return [CurvePoint(alpha, *np.mean(of_seeds, 0).tolist()) for alpha, of_seeds in zip(alphas, points, strict=True)]


@dataclass(frozen=True)
class Bins:
    """The reliability bins of a model over all seeds, each `(bins,)`; `count` is per seed, empty bins have NaN."""

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """Which bins have enough predictions for a meaningful accuracy."""
        return (self.count > 0) & (self.count >= MIN_BIN_FRACTION * self.count.sum())


def pooled_bins(entry: Entry, dataset: str) -> Bins | None:
    """The reliability bins of a model on a dataset, or None if no seed has any."""
    seeds = [run.classified[dataset].bins for run in entry.runs if run.classified[dataset].bins]
    if not seeds:
        return None
    counts, *measures = np.array(
        [[(part.count, part.confidence, part.accuracy) for part in bins] for bins in seeds], dtype=float
    ).transpose(2, 0, 1)
    total = counts.sum(0)
    # The confidence of an empty bin means nothing, and may be NaN.
    weighted = [np.where(counts > 0, counts * values, 0).sum(0) for values in measures]
    with np.errstate(invalid="ignore"):
        return Bins(total / len(seeds), *(values / total for values in weighted))
