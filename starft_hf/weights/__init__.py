"""Arithmetic on weights: interpolation between two models, and soups of many."""

from starft_hf.weights.interpolation import Sweep, interpolate, sweep
from starft_hf.weights.soups import GreedySoup, greedy_soup, interpolate_checkpoints, uniform_soup


__all__ = ["GreedySoup", "Sweep", "greedy_soup", "interpolate", "interpolate_checkpoints", "sweep", "uniform_soup"]
