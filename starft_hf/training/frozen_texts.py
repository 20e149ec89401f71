"""The captions of a frozen text tower, embedded once instead of in every step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.data.captions import CaptionBank
from starft_hf.models.adapters import has_adapter_weights
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.fsdp import full_tensor
from starft_hf.models.gradient_cache import embeds_apart
from starft_hf.models.modes import evaluation_mode
from starft_hf.models.parts import TEXT, parts_of
from starft_hf.reference.live import LiveReference
from starft_hf.reference.texts import CachedTexts, size_in_gib
from starft_hf.training.parameter_groups import embeds_texts_alike
from starft_hf.utils.hashing import tensors_digest
from starft_hf.utils.preparation import prepared
from starft_hf.utils.store import FeatureStore


logger = logging.get_logger(__name__)


class _Itself(LiveReference):
    """The model that is trained, as it is."""

    kind = "the model itself"

    def _as_reference(self) -> Any:
        return evaluation_mode(self.model)

    def equals(self, model: nn.Module) -> bool:
        return True


class FrozenTexts:
    """The embeddings of all captions of a bank, by a model whose text tower is frozen.

    They are what the model would compute in a step, without dropout. The reference's are in the same file, if it is
    the model as given, and are then computed once for both.

    Args:
        model: the model, possibly adapted.
        encoder: its spec.
        bank: the captions, with the spurious ones if losses need them.
        store: the files of cached embeddings; None computes them anew.
        progress: whether to show a progress bar.
    """

    def __init__(
        self, model: nn.Module, encoder: DualEncoder, bank: CaptionBank, store: FeatureStore | None, progress: bool
    ):
        self.model = model
        self._encoder = encoder
        self._bank = bank
        self._progress = progress
        # The key of a file does not depend on an adapter.
        self._store = None if has_adapter_weights(model, self._names()) else store
        self._texts: CachedTexts | None = None
        self._digest: str | None = None

    def prepare(self, device: torch.device) -> None:
        """Compute the embeddings, or read them, unless they are those of the present weights.

        Raises:
            ValueError: if the text tower is no longer frozen.
        """
        if not embeds_texts_alike(self.model):
            raise ValueError(
                "the text tower was frozen when the trainer was made, and parameters of it have requires_grad=True "
                "now; make a new StarFTTrainer to train it"
            )
        if (digest := self._weights()) != self._digest:
            self._texts = CachedTexts(self._bank, self._store, progress=self._progress, plain=True)
            self._digest = digest
        assert self._texts is not None
        self._texts.prepare(_Itself(self.model, self._encoder), device)

    def is_up_to_date(self) -> bool:
        """Whether the weights of the text tower are those that the embeddings were computed with."""
        return self._digest in (None, self._weights())

    def rows(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Unit embeddings `(M, D)` that `caption_rows`, `class_rows` and `spurious_rows` of a batch are indices into.

        None for a batch of a user's own collator that has tokens, and no ids of its captions.

        Raises:
            ValueError: if it has neither.
        """
        texts = prepared(self._texts)
        found = {
            "caption_rows": ("caption_ids", texts.plain_rows),
            "class_rows": ("class_ids", texts.plain_rows),
            "spurious_rows": ("spurious_ids", texts.rows),
        }
        used = {rows: known for rows, known in found.items() if rows in batch}
        if missing := [ids for ids, _ in used.values() if ids not in batch]:
            if "input_ids" in batch:
                return None
            raise ValueError(
                f"the text tower is frozen, so texts are not encoded, and the batch of the data_collator has no "
                f"{missing[0]!r}; return what StarFTCollator returns beside tensors of your own"
            )
        # There are at most as many distinct texts as rows; counting them would wait for the device.
        nothing = texts.rows(torch.empty(0, dtype=torch.long))
        embeds = nothing.new_zeros(sum(len(batch[rows]) for rows in used), nothing.shape[1])
        for rows, (ids, embeds_of) in used.items():
            embeds[batch[rows]] = embeds_of(batch[ids])
        return embeds

    def _names(self) -> list[str]:
        return [name for name, part in parts_of(self.model).items() if part.tower == TEXT]

    def _weights(self) -> str:
        parameters = dict(self.model.named_parameters())
        return tensors_digest({name: full_tensor(parameters[name]) for name in self._names()})


def frozen_texts(
    model: nn.Module, encoder: DualEncoder, bank: CaptionBank, store: FeatureStore | None, args: Any, *, spurious: bool
) -> FrozenTexts | None:
    """The embeddings of the captions of a run whose text tower is frozen, not yet computed; None if it is trained.

    Args:
        model: the model, possibly adapted.
        encoder: its spec.
        bank: the captions of the run; one without classes has none that are known in advance.
        store: the files of the reference's cached embeddings, if they are cached.
        args: the settings, a `StarFTConfig`.
        spurious: whether losses compare with spurious captions of the trained model.
    """
    if not bank.class_names or not embeds_apart(model) or not embeds_texts_alike(model):
        return None
    bank = bank if spurious else replace(bank, pool=None)
    if (gib := size_in_gib(model, bank)) > args.reference_text_cache_gib:
        logger.warning(
            "The text tower is frozen, but the embeddings of all captions of this run would take %.1f GiB, more than "
            "reference_text_cache_gib=%g, so the captions of every batch are embedded in its step.",
            gib,
            args.reference_text_cache_gib,
        )
        return None
    return FrozenTexts(model, encoder, bank, store, not args.disable_tqdm)
