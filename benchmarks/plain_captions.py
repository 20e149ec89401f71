"""Pools that have plain captions among the spurious ones."""

from collections.abc import Sequence

from starft_hf import SpuriosityPool


def with_plain_captions(templates: Sequence[str], share: float) -> SpuriosityPool:
    """These templates, and `{}.` for a share of all draws; the templates share the rest alike."""
    if not share:
        return SpuriosityPool(templates)
    return SpuriosityPool([*templates, "{}."], weights=[*[(1 - share) / len(templates)] * len(templates), share])
