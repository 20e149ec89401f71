"""What FSDP 2 asks of a model that dual encoders of transformers do not bring."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn


def prepare_for_sharding(model: nn.Module) -> list[str]:
    """Change a dual encoder in place so that FSDP 2 can shard it.

    It shards no scalars, and the temperature is one: scalars become vectors of length 1, which compute the same. And
    Accelerate asks for input embeddings, which dual encoders refuse to name.

    Returns:
        The names of the parameters that were scalars.
    """
    scalars = [name for name, value in model.named_parameters() if value.ndim == 0]
    for name in scalars:
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        scalar = getattr(owner, attribute)
        setattr(owner, attribute, nn.Parameter(scalar.detach().reshape(1), requires_grad=scalar.requires_grad))
    for module in model.modules():
        if hasattr(module, "get_input_embeddings"):
            try:
                cast(Any, module).get_input_embeddings()
            except NotImplementedError:
                cast(Any, module).get_input_embeddings = lambda: None
    return scalars


def with_scalars(state_dict: Mapping[str, Tensor], scalars: Iterable[str]) -> dict[str, Tensor]:
    """A state dict to be saved, in which what were scalars are scalars again."""
    return {name: value.reshape(()) if name in set(scalars) else value for name, value in state_dict.items()}
