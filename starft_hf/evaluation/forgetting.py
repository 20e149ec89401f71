"""How far a fine-tuned model has moved from its start, without images of other tasks: texts, and answers."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr

from starft_hf.evaluation.bootstrap import Floats


@dataclass(frozen=True)
class TextChange:
    """How far the text tower has moved the similarities of texts; all 0 for the same tower.

    Attributes:
        rank_change: 1 less the rank correlation of the cosines of all pairs of texts before and after.
        divergence: mean over texts of the divergence of the distribution over the other texts, by their cosines and
            the temperature of the start, from what it was, in nats.
    """

    rank_change: float
    divergence: float


def text_change(start: Floats, tuned: Floats, scale: float) -> TextChange:
    """Compare the unit rows `(T, D)` of the same texts, at least three, by two models.

    Args:
        start: by the model before fine-tuning.
        tuned: by the fine-tuned one, of any width.
        scale: inverse temperature of the start.
    """
    before, after = start @ start.T, tuned @ tuned.T
    pairs = np.triu_indices(len(before), 1)
    correlation = 1.0 if np.array_equal(before, after) else float(spearmanr(before[pairs], after[pairs]).statistic)
    others = ~np.eye(len(before), dtype=bool)
    rows = [scale * cosines[others].reshape(len(before), -1) for cosines in (before, after)]
    return TextChange(
        max(0.0, 1 - (correlation if math.isfinite(correlation) else 0.0)), float(divergence(*rows).mean())
    )


def divergence(start: Floats, tuned: Floats) -> Floats:
    """The divergence of the distributions of logits `(N, C)` from those of the start, in nats, `(N,)`."""
    known, own = log_softmax(start, -1), log_softmax(tuned, -1)
    found: Floats = np.maximum((np.exp(known) * (known - own)).sum(-1), 0)
    return found


def total_variation(first: Floats, second: Floats) -> Floats:
    """How much probability differs between the distributions of logits `(N, C)`, from 0 to 1, `(N,)`."""
    found: Floats = np.abs(softmax(first, -1) - softmax(second, -1)).sum(-1) / 2
    return found
