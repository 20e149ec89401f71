"""Turns texts into arguments of a dual encoder's forward."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from starft_hf.packing import pack


# Towers of these types see padding (they take no attention mask and pool the last position), so that only texts padded
# to the length they were trained at give the right embeddings.
_FIXED_LENGTH_TYPES = ("siglip", "siglip2")

# Towers of these types are causal, take a mask per pair of tokens and pool one token.
_PACKABLE_TYPES = ("clip",)

# Before transformers knew CLIP's end token, configurations had 2, and the highest id was pooled.
_LEGACY_EOS = 2


class TextEncoding:
    """Turns texts into arguments of the model's forward, as economically as its text tower allows.

    Args:
        tokenizer: the model's tokenizer.
        max_length: positions of the text tower; longer texts are cut.
        arguments: the names of the forward's arguments.
        fixed_length: pad to `max_length` rather than to the longest text.
        pooled_token: for towers whose texts can share what they begin with (`starft_hf.packing`): the id of the token
            that is pooled, or -1 for the highest. None pads every text by itself.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        arguments: Sequence[str],
        fixed_length: bool = False,
        pooled_token: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.arguments = tuple(arguments)
        self.fixed_length = fixed_length
        self.pooled_token = pooled_token

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, arguments: Sequence[str], *, packed: bool) -> "TextEncoding":
        """The encoding for `model`; `packed` allows texts to share what they begin with, where the tower can."""
        config: Any = model.config
        # RoBERTa-like towers count positions from the padding index on, and announce two too many.
        positions = getattr(config.text_config, "max_position_embeddings", None) or tokenizer.model_max_length
        max_length = int(min(positions, tokenizer.model_max_length))
        pooled_token = None
        if packed and _can_pack(model, arguments):
            eos = config.text_config.eos_token_id
            pooled_token = -1 if eos == _LEGACY_EOS else eos
        return cls(tokenizer, max_length, arguments, config.model_type in _FIXED_LENGTH_TYPES, pooled_token)

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if self.pooled_token is not None:
            sequences = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
            pooled = [self._pooled_position(sequence) for sequence in sequences]
            return pack(sequences, pooled, self.max_length, self.tokenizer.pad_token_id or 0)
        encoded = self.tokenizer(
            list(texts),
            padding="max_length" if self.fixed_length else "longest",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {name: values for name, values in encoded.items() if name in self.arguments}

    def _pooled_position(self, sequence: Sequence[int]) -> int:
        return sequence.index(max(sequence) if self.pooled_token == -1 else self.pooled_token)


def _can_pack(model: nn.Module, arguments: Sequence[str]) -> bool:
    from starft_hf.models import differs_in_training

    tower = getattr(model, "text_model", None)
    if not isinstance(tower, nn.Module) or "position_ids" not in arguments:
        return False
    config: Any = model.config
    # Only this implementation takes a boolean mask per pair of tokens. Under dropout, shared tokens would drop alike.
    attention = getattr(tower.config, "_attn_implementation", None)
    return config.model_type in _PACKABLE_TYPES and attention == "sdpa" and not differs_in_training(tower)
