"""The frozen zero-shot model that fine-tuning is kept aligned with."""

from starft_hf.reference.base import Reference, ReferenceInfo
from starft_hf.reference.cached import CachedReference
from starft_hf.reference.factory import CachePlan, ReferenceSettings, make_live_reference, make_reference, plan_cache
from starft_hf.reference.live import AdapterReference, FrozenReference


__all__ = [
    "AdapterReference",
    "CachePlan",
    "CachedReference",
    "FrozenReference",
    "Reference",
    "ReferenceInfo",
    "ReferenceSettings",
    "make_live_reference",
    "make_reference",
    "plan_cache",
]
