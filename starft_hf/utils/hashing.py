"""Digests of values and tensors."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(parts: Any) -> str:
    """A digest of anything that JSON can represent."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def text_key(text: str) -> int:
    """A number of 63 bits for a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of named tensors: of names, dtypes, shapes and every byte."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        # A copy, because a tensor with a numpy view cannot be resized any more, which FSDP does with its parameters.
        tensor = tensors[name].detach().to("cpu", copy=True).contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
