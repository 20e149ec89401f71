"""Turning texts into arguments of a dual encoder's forward."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.models.families import LEGACY_EOS, family_of
from starft_hf.models.modes import has_dropout
from starft_hf.models.prefix_sharing import PACKED_ATTENTION, pack


logger = logging.get_logger(__name__)

# The arguments of a forward that belong to its texts; the others belong to its images.
TEXT_ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

# Whether the warning about truncated texts was given, by tokenizer; in memory that worker processes share.
_WARNED: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

# Stands for a class name in a text, to find what comes before it. No text contains it.
_NAME = "\ue000"


class TextEncoding:
    """Turns texts into arguments of the model's forward, with as few tokens as its text tower allows.

    Args:
        model: the dual encoder; no reference to it is kept.
        tokenizer: its tokenizer.
        arguments: the names of the forward's arguments.
        packed: whether texts share their prefixes (`prefix_sharing`), where the text tower allows it.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, arguments: Sequence[str], *, packed: bool):
        config: Any = model.config
        self.tokenizer = tokenizer
        positions = getattr(config.text_config, "max_position_embeddings", None) or tokenizer.model_max_length
        if (padding := counts_from_padding(model)) is not None:
            positions -= padding + 1
        self.max_length = int(min(positions, tokenizer.model_max_length))
        self.fixed_length = family_of(model).fixed_length
        self._arguments = tuple(arguments)
        self._packed = packed and _can_pack(model, arguments)
        self._pooled_token = config.text_config.eos_token_id if self._packed else None
        self._special_tokens = tokenizer.num_special_tokens_to_add()
        self._warned = _WARNED.setdefault(tokenizer, torch.zeros((), dtype=torch.bool).share_memory_())

    def fits(self, text: str) -> bool:
        """Whether the text tower sees all of `text`."""
        # A text never has more tokens than characters, except for one that some tokenizers put in front.
        if text.isascii() and len(text) + self._special_tokens < self.max_length:
            return True
        return len(self.tokenizer(text, verbose=False)["input_ids"]) <= self.max_length

    def fit(self, fill: Callable[[str], str], name: str) -> str:
        """The text that `fill` makes from a class name, such that the text tower sees the whole name.

        A long text is truncated at its end. Where that would cut the name, words before the name are dropped instead.
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

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text that the text tower sees."""
        # One call for many texts: one for each takes far longer than a small tower needs to encode them.
        whole = list(self.tokenizer(list(texts), verbose=False)["input_ids"])
        if all(len(tokens) <= self.max_length for tokens in whole):
            return whole
        self._warn_of_cut(
            next(text for text, tokens in zip(texts, whole, strict=True) if len(tokens) > self.max_length)
        )
        return list(self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"])

    def check_name(self, name: str) -> None:
        """Raise ValueError if a class name, which is in every caption of the class, does not fit the text tower."""
        if not self.fits(name):
            length = len(self.tokenizer(name, verbose=False)["input_ids"])
            raise ValueError(
                f"the class name {name!r} takes {length} tokens, and the text tower sees {self.max_length}; pass "
                "class_names with a shorter one"
            )

    def knows(self, text: str) -> bool:
        """Whether the tokenizer knows every word of `text`, and puts none in the place of those it does not know."""
        unknown = self.tokenizer.unk_token_id
        return unknown is None or unknown not in self.tokenizer(text, add_special_tokens=False)["input_ids"]

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
        if self._packed:
            sequences = self.token_ids(texts)
            pooled = [self._pooled_position(sequence) for sequence in sequences]
            return pack(sequences, pooled, self.max_length, self.tokenizer.pad_token_id or 0)
        if not self._warned and (cut := next((text for text in texts if not self.fits(text)), None)) is not None:
            self._warn_of_cut(cut)
        encoded = self.tokenizer(
            list(texts),
            padding="max_length" if self.fixed_length else "longest",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {name: values for name, values in encoded.items() if name in self._arguments}

    def _pooled_position(self, sequence: Sequence[int]) -> int:
        return sequence.index(max(sequence) if self._pooled_token == LEGACY_EOS else self._pooled_token)


def counts_from_padding(model: nn.Module) -> int | None:
    """The padding token after which the text tower counts positions, as RoBERTa does; None for other towers.

    As many of its positions as that are not for tokens.
    """
    tower = getattr(model, family_of(model).text_tower, None)
    for name, module in tower.named_modules() if isinstance(tower, nn.Module) else ():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.padding_idx
    return None


def _can_pack(model: nn.Module, arguments: Sequence[str]) -> bool:
    family = family_of(model)
    tower = getattr(model, family.text_tower, None)
    if not family.shares_prefixes or not isinstance(tower, nn.Module) or "position_ids" not in arguments:
        return False
    # Under dropout, shared tokens would drop alike.
    return getattr(tower.config, "_attn_implementation", None) == PACKED_ATTENTION and not has_dropout(tower)
