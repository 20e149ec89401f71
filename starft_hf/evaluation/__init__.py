"""Robust evaluation: zero-shot classifiers, groups, calibration."""

from starft_hf.evaluation.counts import ClassificationCounts
from starft_hf.evaluation.zero_shot import zero_shot_weights


__all__ = ["ClassificationCounts", "zero_shot_weights"]
