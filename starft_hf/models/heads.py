"""The linear head of cross-entropy fine-tuning, and the file it is kept in beside the encoder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.models.encoder import whole
from starft_hf.utils.files import file_in_place_of
from starft_hf.utils.names import check_names


logger = logging.get_logger(__name__)

# What the head is called as a module of the model.
HEAD_NAME = "classification_head"
HEAD_FILE = "classification_head.safetensors"


def head_from_weights(weights: Tensor) -> nn.Linear:
    """A linear head whose weight is `weights`, `(classes, D)`, and whose bias is 0."""
    head = nn.Linear(weights.shape[1], weights.shape[0], dtype=weights.dtype, device=weights.device)
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.zero_()
    return head


def select_classes(head: nn.Linear, class_names: Sequence[str], wanted: Sequence[str]) -> nn.Linear | None:
    """The part of a head over `class_names` that tells the classes `wanted` apart.

    None, with a warning, if it lacks one of them: such classes can only be told apart by their names.
    """
    if tuple(wanted) == tuple(class_names):
        return head
    lacking = [name for name in wanted if name not in class_names]
    if lacking:
        logger.warning_once(
            "The linear head has no class %r, so images of this evaluation set are classified zero-shot, by the "
            "embeddings of class names, and not by the head.",
            lacking[0],
        )
        return None
    rows = [class_names.index(name) for name in wanted]
    part = head_from_weights(whole(head.weight)[rows].detach())
    with torch.no_grad():
        part.bias.copy_(whole(head.bias)[rows])
    return part


def save_head(head: Mapping[str, Tensor], class_names: Sequence[str], folder: str | Path) -> None:
    """Write a head's `weight` and `bias` with its class names into `folder`, at once or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.items()}
    with file_in_place_of(Path(folder) / HEAD_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "class_names": json.dumps(list(class_names))})


def load_head(folder: str | Path) -> tuple[nn.Linear, list[str]]:
    """The head in `folder` and its class names.

    Raises:
        FileNotFoundError: if the folder holds no head; only runs with base_loss="cross_entropy" save one.
        ValueError: if it is damaged.
    """
    path = Path(folder) / HEAD_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {HEAD_FILE}; only base_loss='cross_entropy' runs save one")
    try:
        with safe_open(path, framework="pt") as file:
            class_names = json.loads((file.metadata() or {})["class_names"])
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        check_names(class_names)
        if weight.ndim != 2 or weight.shape[0] != len(class_names) or bias.shape != weight.shape[:1]:
            raise ValueError(f"shapes {tuple(weight.shape)} and {tuple(bias.shape)} for {len(class_names)} classes")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error!r}); copy or download it again") from error
    head = head_from_weights(weight)
    with torch.no_grad():
        head.bias.copy_(bias)
    return head, class_names
