"""Turning texts into arguments of a dual encoder's forward."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.models.families import LEGACY_EOS, family_of
from starft_hf.models.modes import differs_in_training
from starft_hf.models.prefix_sharing import pack


logger = logging.get_logger(__name__)

# Whether the warning about truncated texts was given, by tokenizer; in memory that worker processes share.
_WARNED: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

# Stands for a class name in a text, to find what comes before it. No text contains it.
_NAME = "\ue000"


class TextEncoding:
    """Turns texts into arguments of the model's forward, with as few tokens as its text tower allows.

    Args:
        tokenizer: the model's tokenizer.
        max_length: positions of the text tower; longer texts are truncated.
        arguments: the names of the forward's arguments.
        fixed_length: pad to `max_length` rather than to the longest text.
        pooled_token: for towers whose texts can share their prefixes (`prefix_sharing`): the id of the token that is
            pooled, or -1 for the highest. None pads every text separately.
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
        self._warned = _WARNED.setdefault(tokenizer, torch.zeros((), dtype=torch.bool).share_memory_())

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, arguments: Sequence[str], *, packed: bool) -> "TextEncoding":
        """The encoding for `model`; `packed` lets texts share their prefixes, where the tower can."""
        config: Any = model.config
        # RoBERTa-like towers count positions from the padding index on, so that their configuration has two too many.
        positions = getattr(config.text_config, "max_position_embeddings", None) or tokenizer.model_max_length
        max_length = int(min(positions, tokenizer.model_max_length))
        pooled_token = None
        if packed and _can_pack(model, arguments):
            eos = config.text_config.eos_token_id
            pooled_token = -1 if eos == LEGACY_EOS else eos
        return cls(tokenizer, max_length, arguments, family_of(model).fixed_length, pooled_token)

    def fits(self, text: str) -> bool:
        """Whether the text tower sees all of `text`."""
        # A text never has more tokens than characters, except for one that some tokenizers put in front.
        if text.isascii() and len(text) + self._special_tokens < self.max_length:
            return True
        return len(self.tokenizer(text, verbose=False)["input_ids"]) <= self.max_length

    def fit(self, fill: Callable[[str], str], name: str) -> str:
        """The text that `fill` makes from a class name, such that the text tower sees the whole name.

        A long text is truncated at its end. Where that would cut the name, words before the name are dropped instead.

        Raises:
            ValueError: if not even the name by itself fits.
        """
        text = fill(name)
        if self.fits(text):
            return text
        self._warn_of_cut(text)
        before = fill(_NAME).partition(_NAME)[0]
        if self.fits(before + name):
            return text
        self.check_name(name)
        words, after = before.split(" "), text[len(before) + len(name) :]
        while words and not self.fits(" ".join(words) + name):
            words = words[1:]
        return " ".join(words) + name + after

    def check_name(self, name: str) -> None:
        """Check that a class name, which is in every caption of the class, fits the text tower.

        Raises:
            ValueError: if it is too long.
        """
        if not self.fits(name):
            length = len(self.tokenizer(name, verbose=False)["input_ids"])
            raise ValueError(
                f"the class name {name!r} takes {length} tokens, and the text tower sees {self.max_length}; pass "
                "class_names with a shorter one"
            )

    def _warn_of_cut(self, text: str) -> None:
        """Warn that texts are truncated: once, over all processes that load data."""
        if not self._warned:
            self._warned.fill_(True)
            logger.warning(
                "Texts longer than the %d tokens that the text tower sees are truncated, such as %r. Class names are "
                "never truncated. This warning is given once.",
                self.max_length,
                text,
            )

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if not self._warned and (cut := next((text for text in texts if not self.fits(text)), None)) is not None:
            self._warn_of_cut(cut)
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
    family = family_of(model)
    tower = getattr(model, family.text_tower, None)
    if not family.shares_prefixes or not isinstance(tower, nn.Module) or "position_ids" not in arguments:
        return False
    # Only this attention takes a boolean mask per pair of tokens. Under dropout, shared tokens would drop alike.
    attention = getattr(tower.config, "_attn_implementation", None)
    return attention == "sdpa" and not differs_in_training(tower)
