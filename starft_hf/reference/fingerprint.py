"""Short keys of what cached features depend on beside their images: weights and texts."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import transformers
from torch import nn

from starft_hf.data.fingerprint import code_of
from starft_hf.models.adapters import base_model_of, base_state, without_adapter
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import HEAD_NAME
from starft_hf.utils.hashing import digest, tensors_digest


# Entries of a configuration that say where it came from, not what the model computes.
_IRRELEVANT_SETTINGS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def model_fingerprint(model: nn.Module) -> str:
    """A key of what a model embeds without its adapter: weights, settings, code and the version of transformers.

    A head, which classifies embeddings, does not change them.
    """
    settings = _without(base_model_of(model).config.to_dict(), _IRRELEVANT_SETTINGS)
    code = [code_of(kind) for kind in _kinds(base_model_of(model))]
    state = {name: value for name, value in base_state(model).items() if not name.startswith(f"{HEAD_NAME}.")}
    return digest([settings, code, tensors_digest(state), transformers.__version__])


def _kinds(module: nn.Module) -> Iterator[type]:
    module = without_adapter(module)
    yield type(module)
    for name, child in module.named_children():
        if name != HEAD_NAME:
            yield from _kinds(child)


def _without(settings: Any, names: Iterable[str]) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {name: _without(value, names) for name, value in settings.items() if name not in names}


def texts_fingerprint(encoder: DualEncoder, texts: Iterable[str]) -> str:
    """A key of texts and of how they are tokenized."""
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        hasher.update(text.encode() + b"\0")
    encoding = encoder.encode_texts
    tokenizer = _tokenizer_state(encoding.tokenizer)
    return digest([tokenizer, encoding.max_length, encoding.fixed_length, hasher.hexdigest()])


def _tokenizer_state(tokenizer: Any) -> Any:
    settings = [str(tokenizer.pad_token), tokenizer.padding_side, tokenizer.truncation_side]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [code_of(type(tokenizer)), settings, tokenizer.get_vocab(), tokenizer.init_kwargs]
    # Truncation and padding are state of the last call.
    return [settings, _without(json.loads(backend.to_str()), ("truncation", "padding"))]
