"""Repair: a better worst group after training, from embeddings of a validation set."""

from starft_hf.weights.repair.repairing import RepairResult, Tried, repair
from starft_hf.weights.repair.selection import Score


__all__ = ["RepairResult", "Score", "Tried", "repair"]
