"""The linear head of cross-entropy fine-tuning: its logits, and the file it is saved in beside the encoder."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.models.fsdp import full_tensor
from starft_hf.objectives.losses import as_float32_or_wider, similarity_logits
from starft_hf.utils.files import file_in_place_of
from starft_hf.utils.names import check_names
from starft_hf.utils.untrusted import parse_json


logger = logging.get_logger(__name__)

# The name of the head as a module of the model.
HEAD_NAME = "classification_head"
HEAD_FILE = "classification_head.safetensors"


class ClassificationHead(nn.Linear):
    """A linear head with the classes of its rows, and the prompts it was made of; None where they are not known."""

    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None


def head_from_weights(weights: Tensor, bias: Tensor | None = None) -> ClassificationHead:
    """A linear head whose weight is `weights`, `(classes, D)`, and whose bias is `bias`, `(classes,)`, or 0."""
    head = ClassificationHead(weights.shape[1], weights.shape[0], dtype=weights.dtype, device=weights.device)
    with torch.no_grad():
        head.weight.copy_(weights)
        head.bias.zero_() if bias is None else head.bias.copy_(bias)
    return head


def head_logits(head: nn.Linear, image_embeds: Tensor) -> Tensor:
    """Logits `(N, classes)` of a linear head on unit image embeddings, in float32 or wider."""
    logits = similarity_logits(image_embeds, full_tensor(head.weight), 1.0)
    return logits if head.bias is None else logits + as_float32_or_wider(full_tensor(head.bias))


def select_classes(head: nn.Linear, class_names: Sequence[str], wanted: Sequence[str]) -> nn.Linear | None:
    """The rows of a head over `class_names` for the classes `wanted`; None, with a warning, if one is missing."""
    if tuple(wanted) == tuple(class_names):
        return head
    missing = [name for name in wanted if name not in class_names]
    if missing:
        logger.warning_once(
            "The linear head has no class %r, so images of this evaluation set are classified zero-shot, by the "
            "embeddings of class names, instead of by the head.",
            missing[0],
        )
        return None
    return rows_of_head(head, class_names, wanted)


def rows_of_head(head: nn.Linear, class_names: Sequence[str], wanted: Sequence[str]) -> ClassificationHead:
    """The head over the classes `wanted`, of those that it is over; on the same device, detached."""
    rows = [class_names.index(name) for name in wanted]
    bias = None if head.bias is None else full_tensor(head.bias)[rows].detach()
    chosen = head_from_weights(full_tensor(head.weight)[rows].detach(), bias)
    chosen.class_names = tuple(wanted)
    return chosen


def head_over(head: nn.Linear, class_names: Sequence[str]) -> nn.Linear:
    """A head whose rows are those of `class_names`, by the names of its own classes where it has them.

    Raises:
        ValueError: if it is not a linear layer, or its classes are others.
    """
    if not isinstance(head, nn.Linear):
        raise ValueError(f"head is a {type(head).__name__}; pass an nn.Linear over class_names")
    wanted: tuple[str, ...] = tuple(class_names)
    own: tuple[str, ...] = tuple(getattr(head, "class_names", None) or ())
    if set(wanted) <= set(own):
        return head if wanted == own else rows_of_head(head, own, wanted)
    if head.out_features != len(wanted):
        raise ValueError(
            f"the head has {head.out_features} outputs, but there are {len(wanted)} class names; pass the class "
            "names of the head, and class_mapping where the labels are others"
        )
    # Other names for the same classes have the same order.
    moved = next((name for place, name in enumerate(wanted) if name in own and name != own[place]), None)
    if moved is not None:
        raise ValueError(
            f"the head has the classes {list(own[:4])}, and class_names has {moved!r} in another place, beside names "
            "that the head does not have; pass the class names of the head"
        )
    return head


def save_head(head: Mapping[str, Tensor], class_names: Sequence[str], folder: str | Path) -> None:
    """Write a head's `weight` and `bias` with its class names into `folder`, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.items()}
    with file_in_place_of(Path(folder) / HEAD_FILE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "class_names": json.dumps(list(class_names))})


def load_head(folder: str | PathLike[str]) -> tuple[nn.Linear, list[str]]:
    """The head in `folder` and its class names; FileNotFoundError without one, ValueError if it is damaged."""
    path = Path(folder) / HEAD_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{str(folder)!r} has no {HEAD_FILE}; only base_loss='cross_entropy' runs save one")
    try:
        with safe_open(path, framework="pt") as file:
            class_names = parse_json((file.metadata() or {})["class_names"])
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        check_names(class_names)
        if weight.ndim != 2 or weight.shape[0] != len(class_names) or bias.shape != weight.shape[:1]:
            raise ValueError(f"shapes {tuple(weight.shape)} and {tuple(bias.shape)} for {len(class_names)} classes")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error!r}); copy or download it again") from error
    head = head_from_weights(weight, bias)
    head.class_names = tuple(class_names)
    return head, class_names
