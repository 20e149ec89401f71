"""The zero-shot head of a checkpoint without one, to interpolate it with the trained head of another checkpoint."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.hub.record import RECORD_FILE
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import HEAD_FILE
from starft_hf.models.loading import check_complete, load_processor
from starft_hf.models.own_code import check_classes
from starft_hf.weights.folders import Checkpoint, check_alike


def with_heads(pair: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Two checkpoints, of which the one without a head, if the other has one, gets its zero-shot head.

    Raises:
        ValueError: if the models differ, or no prompts are recorded, or neither has a processor.
    """
    trained = next((one for one in pair if one.head is not None), None)
    if trained is None or all(one.head is not None for one in pair):
        return list(pair)
    # Before a model is loaded.
    check_alike([one.with_head(None, None) for one in pair])
    if trained.record is None or not trained.record.config.get("caption_template"):
        raise ValueError(
            f"{str(trained.folder)!r} has a {HEAD_FILE} and no {RECORD_FILE} with the caption_template it was made "
            "of, so no zero-shot head can be made for the other checkpoint; copy the file from the folder of the run"
        )
    templates, names = trained.record.prompts, trained.class_names or ()
    return [one if one is trained else one.with_head(_head_of(one, pair, names, templates), names) for one in pair]


def _head_of(
    checkpoint: Checkpoint, pair: Sequence[Checkpoint], class_names: Sequence[str], templates: Sequence[str]
) -> nn.Linear:
    stored = next(value.dtype for value in checkpoint.tensors.values() if value.is_floating_point())
    check_classes(str(checkpoint.folder), trust_remote_code=False)
    dtype = torch.promote_types(stored, torch.float32)
    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "output_loading_info": True}
    model, found = AutoModel.from_pretrained(checkpoint.folder, **settings)
    check_complete(model, found["missing_keys"], str(checkpoint.folder))
    return zero_shot_head(model, DualEncoder.of(model, _processor_of(model, pair)), class_names, templates)


def _processor_of(model: nn.Module, pair: Sequence[Checkpoint]) -> Any:
    """The processor of the first checkpoint that has one."""
    try:
        return load_processor(model, str(pair[0].folder))
    except ValueError:
        return load_processor(model, str(pair[1].folder))
