"""What cached features depend on, as short keys: other weights, texts, images or preprocessing give another key."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
from datasets import Dataset
from torch import Tensor

from starft_hf.models import DualEncoder


# What a configuration says about where it came from rather than about what the model computes.
_IRRELEVANT_SETTINGS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def digest(parts: Any) -> str:
    """A key for anything JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A key for named tensors: names, types, shapes and every byte."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        # A copy, because what numpy has looked at can no longer be resized, as FSDP does with its parameters.
        tensor = tensors[name].detach().to("cpu", copy=True).contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def model_fingerprint(config: Any, state: Mapping[str, Tensor]) -> str:
    """A key for what a model computes: its weights, its settings and the library's version."""
    settings = _without(config.to_dict(), _IRRELEVANT_SETTINGS)
    return digest([settings, tensors_digest(state), transformers.__version__])


def _without(settings: Any, names: Iterable[str]) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {name: _without(value, names) for name, value in settings.items() if name not in names}


def texts_fingerprint(encoder: DualEncoder, texts: Iterable[str]) -> str:
    """A key for texts and how they become token ids."""
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        hasher.update(text.encode() + b"\0")
    encoding = encoder.encode_texts
    return digest(
        [_tokenizer_state(encoding.tokenizer), encoding.max_length, encoding.fixed_length, hasher.hexdigest()]
    )


def _tokenizer_state(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs]
    # Truncation and padding are those of the last call.
    return _without(json.loads(backend.to_str()), ("truncation", "padding"))


def preprocessing_fingerprint(image_processor: Any) -> str:
    """A key for the image processor's deterministic preprocessing."""
    return digest([type(image_processor).__name__, image_processor.to_dict()])


def images_fingerprint(dataset: Dataset, column: str) -> str:
    """A key for the images of a data set in their order.

    `datasets` keys tables by their content or by how they came about. Files beside the tables may change unnoticed by
    it, so their sizes and times count as well.
    """
    files = [*(file["filename"] for file in dataset.cache_files), *_image_paths(dataset, column)]
    return digest([dataset._fingerprint, len(dataset), column, [_state_of(Path(file)) for file in files]])


def _image_paths(dataset: Dataset, column: str) -> list[str]:
    paths: list[str] = []
    for chunk in dataset.data.column(column).chunks:
        storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if pa.types.is_struct(storage.type) and {"path", "bytes"} <= {field.name for field in storage.type}:
            embedded = storage.field("bytes").is_valid()
            pairs = zip(storage.field("path").to_pylist(), embedded.to_pylist(), strict=True)
            paths += [path for path, has_bytes in pairs if path is not None and not has_bytes]
        elif pa.types.is_string(storage.type):
            paths += [path for path in storage.to_pylist() if path is not None]
    return paths


def _state_of(file: Path) -> list[int] | None:
    try:
        state = file.stat()
    except OSError:
        # Remote files have an address instead; their content is part of it as far as anything here can tell.
        return None
    return [state.st_size, state.st_mtime_ns]
