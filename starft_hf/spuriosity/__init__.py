"""Pools of spurious templates: what StarFT keeps a model from learning."""

from starft_hf.spuriosity.pool import SpuriosityPool


__all__ = ["SpuriosityPool"]
