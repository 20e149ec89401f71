"""The frozen zero-shot model that fine-tuning is kept aligned with."""

from starft_hf.reference.base import Reference, ReferenceInfo
from starft_hf.reference.cached import TextCachedReference
from starft_hf.reference.factory import make_reference
from starft_hf.reference.frozen import FrozenReference


__all__ = ["FrozenReference", "Reference", "ReferenceInfo", "TextCachedReference", "make_reference"]
