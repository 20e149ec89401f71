"""Turns texts into arguments of a dual encoder's forward."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.models.prefix_sharing import pack


logger = logging.get_logger(__name__)


# Towers of these types see padding (they take no attention mask and pool the last position), so that only texts padded
# to the length they were trained at give the right embeddings.
_FIXED_LENGTH_TYPES = ("siglip", "siglip2")

# Towers of these types are causal, take a mask per pair of tokens and pool one token.
_PACKABLE_TYPES = ("clip",)

# Before transformers knew CLIP's end token, configurations had 2, and the highest id was pooled.
_LEGACY_EOS = 2

# Whether it was said that texts are cut, by their tokenizer; in memory that worker processes share.
_TOLD: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

# Stands for a class name while what is around it is looked at. No text holds it.
_NAME = "\ue000"


class TextEncoding:
    """Turns texts into arguments of the model's forward, as economically as its text tower allows.

    Args:
        tokenizer: the model's tokenizer.
        max_length: positions of the text tower; longer texts are cut.
        arguments: the names of the forward's arguments.
        fixed_length: pad to `max_length` rather than to the longest text.
        pooled_token: for towers whose texts can share their prefixes (`prefix_sharing`): the id of the token that is
            pooled, or -1 for the highest. None pads every text by itself.
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
        self._special_tokens = tokenizer.num_special_tokens_to_add()
        self._told = _TOLD.setdefault(tokenizer, torch.zeros((), dtype=torch.bool).share_memory_())

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

    def fits(self, text: str) -> bool:
        """Whether the text tower sees all of `text`."""
        # No tokenizer makes more tokens than letters of them, but for one at the beginning.
        if text.isascii() and len(text) + self._special_tokens < self.max_length:
            return True
        return len(self.tokenizer(text, verbose=False)["input_ids"]) <= self.max_length

    def fit(self, fill: Callable[[str], str], name: str) -> str:
        """The text that `fill` makes of a class name, such that the text tower sees the whole name.

        What is too long is cut at its end. Where that would cut the name, words before it are left out instead.

        Raises:
            ValueError: if not even the name by itself fits.
        """
        text = fill(name)
        if self.fits(text):
            return text
        self._tell(text)
        before = fill(_NAME).partition(_NAME)[0]
        if self.fits(before + name):
            return text
        self.check_name(name)
        words, after = before.split(" "), text[len(before) + len(name) :]
        while words and not self.fits(" ".join(words) + name):
            words = words[1:]
        return " ".join(words) + name + after

    def check_name(self, name: str) -> None:
        """Check that the text tower can see a class name, which stands in every caption of the class.

        Raises:
            ValueError: if it is too long.
        """
        if not self.fits(name):
            length = len(self.tokenizer(name, verbose=False)["input_ids"])
            raise ValueError(
                f"the class name {name!r} takes {length} tokens, and the text tower sees {self.max_length}; pass "
                "class_names with a shorter one"
            )

    def _tell(self, text: str) -> None:
        """Warn of a text that is cut, once, in all processes that load data."""
        if not self._told:
            self._told.fill_(True)
            logger.warning(
                "Texts are longer than the %d tokens that the text tower sees, and are cut to them, such as %r. Class "
                "names are never cut. Further ones are not named.",
                self.max_length,
                text,
            )

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if not self._told and (cut := next((text for text in texts if not self.fits(text)), None)) is not None:
            self._tell(cut)
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
    from starft_hf.models.encoder import differs_in_training

    tower = getattr(model, "text_model", None)
    if not isinstance(tower, nn.Module) or "position_ids" not in arguments:
        return False
    config: Any = model.config
    # Only this implementation takes a boolean mask per pair of tokens. Under dropout, shared tokens would drop alike.
    attention = getattr(tower.config, "_attn_implementation", None)
    return config.model_type in _PACKABLE_TYPES and attention == "sdpa" and not differs_in_training(tower)
