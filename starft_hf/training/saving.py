"""What a run saves: the model as it was given, and its head and temperature in files of their own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from starft_hf.models.adapters import base_model_of, is_adapted, save_temperature
from starft_hf.models.fsdp import with_scalars
from starft_hf.models.heads import HEAD_NAME, load_head, save_head
from starft_hf.models.own_code import save_code_of_towers


def save_weights(
    write: Callable[[str, dict[str, Tensor]], None],
    folder: str,
    model: nn.Module,
    state_dict: dict[str, Tensor] | None,
    class_names: Sequence[str] | None,
    scalars: Sequence[str],
) -> None:
    """Save a model, possibly adapted, and its linear head over `class_names`; None for runs without a head.

    `write` saves a state dict without the head; `scalars` are parameters that FSDP made vectors of length 1.
    """
    state_dict = with_scalars(model.state_dict() if state_dict is None else state_dict, scalars)
    # A model may still carry the head of another run, which is not saved.
    head = {name: state_dict.pop(key) for name in ("weight", "bias") if (key := f"{HEAD_NAME}.{name}") in state_dict}
    save_code_of_towers(base_model_of(model), folder)
    write(folder, state_dict)
    if class_names is not None:
        save_head(head, class_names, folder)
    if is_adapted(model):
        save_temperature(model, folder, state_dict)


def restore_head(head: nn.Linear | None, folder: str | Path | None) -> None:
    """Load the weights of a head from the folder of a checkpoint, where there are both."""
    if head is not None and folder is not None:
        saved: Any = load_head(folder)[0]
        head.load_state_dict(saved.state_dict())
