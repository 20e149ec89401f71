"""Robust evaluation: zero-shot classifiers, groups, calibration."""

from starft_hf.evaluation.counts import ClassificationCounts
from starft_hf.evaluation.evaluate import evaluate_zero_shot
from starft_hf.evaluation.multi_label import MultiLabelResult
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.evaluation.zero_shot import zero_shot_weights


__all__ = ["ClassificationCounts", "EvaluationResult", "MultiLabelResult", "evaluate_zero_shot", "zero_shot_weights"]
