"""Robust evaluation: zero-shot classifiers, groups, calibration; retrieval."""

from starft_hf.evaluation.counts import ClassificationCounts
from starft_hf.evaluation.evaluate import evaluate_zero_shot
from starft_hf.evaluation.results import EvaluationResult, MultiLabelResult, RetrievalResult
from starft_hf.evaluation.retrieval import evaluate_retrieval
from starft_hf.evaluation.zero_shot import zero_shot_weights


__all__ = [
    "ClassificationCounts",
    "EvaluationResult",
    "MultiLabelResult",
    "RetrievalResult",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "zero_shot_weights",
]
