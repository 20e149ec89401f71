"""Which kind of reference a run gets."""

from torch import nn

from starft_hf.data.captions import CaptionBank
from starft_hf.models import DualEncoder
from starft_hf.reference.base import Reference
from starft_hf.reference.cached import TextCachedReference
from starft_hf.reference.frozen import FrozenReference


def make_reference(
    model: nn.Module, encoder: DualEncoder, bank: CaptionBank | None, cache: str, *, progress: bool = True
) -> Reference:
    """The reference of a run: `model` as it is now.

    Args:
        model: the model before fine-tuning.
        encoder: its conventions.
        bank: the finite set of captions, or None if captions come from a column.
        cache: "auto", "text" or "none".
        progress: whether to show progress while building a cache.

    Raises:
        ValueError: if texts are to be cached, but their set is not known in advance.
    """
    frozen = FrozenReference(model, encoder)
    if cache == "text" and bank is None:
        raise ValueError(
            "reference_cache='text' remembers the captions of classes, but here captions come from a column or there "
            "are no labels; use reference_cache='auto' or 'none'"
        )
    if cache == "none" or bank is None:
        return frozen
    return TextCachedReference(frozen, bank, progress=progress)
