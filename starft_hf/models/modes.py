"""What state a model is in: training or eval mode, wrapped or not, its dtype."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from starft_hf.models.precision import without_autocast


# Modules that use statistics of the batch, or of each of its images, in training mode.
_Norm = nn.modules.batchnorm._NormBase
_BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and the dtype of the weights; on exit, the mode of every module is restored.

    A run in half precision leaves its autocast on a model; what computes in half precision here says so.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), without_autocast(unwrapped(model)):
            yield
    finally:
        for module, training in modes:
            module.training = training


def freeze_batch_norm(model: nn.Module) -> None:
    """Let batch norm use its running statistics, and leave them as they are, until the next `model.train()`."""
    for module in model.modules():
        if isinstance(module, _Norm) and module.running_mean is not None:
            module.training = False


def has_batch_statistics(model: nn.Module, *, frozen: bool = False) -> bool:
    """Whether rows of a batch influence each other inside the model in training mode, through batch norm.

    When it is `frozen`, that is only where it has no running statistics (`track_running_stats=False`).
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return any(not frozen or module.running_mean is None for module in norms)


def has_dropout(model: nn.Module) -> bool:
    """Whether training mode drops anything at random: units, attention weights or whole layers."""
    return any(_rates(module) for module in model.modules())


def disable_dropout(model: nn.Module) -> bool:
    """Set all rates of dropout to 0, except those of adapters; returns whether there were any."""
    found = False
    for place, module in model.named_modules():
        # PEFT keeps that of an adapter in a dictionary beside its weights: q_proj.lora_dropout.default.
        if "_dropout." in place:
            continue
        for name in _rates(module):
            setattr(module, name, 0.0)
            found = True
    return found


def _rates(module: nn.Module) -> list[str]:
    """The attributes of a module with a rate of dropout above 0."""
    # Rates are numbers called dropout, attention_dropout, drop_prob, ..., or "p" in a module that only drops.
    is_dropout = any(word in type(module).__name__.lower() for word in ("drop", "stochasticdepth"))
    rates = {name: value for name, value in vars(module).items() if "drop" in name or (is_dropout and name == "p")}
    return [
        name
        for name, rate in rates.items()
        if isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0
    ]


def differs_in_training(model: nn.Module) -> bool:
    """Whether modules that are in training mode compute something else than in eval mode.

    Dropout does so whichever mode it is in now, and norms unless they are in eval mode, as frozen ones are.
    """
    return has_dropout(model) or any(isinstance(module, _Norm) and module.training for module in model.modules())


def unwrapped(model: nn.Module) -> Any:
    """The model inside a parallel wrapper or a compiled module."""
    for attribute in ("_orig_mod", "module"):
        while isinstance(inner := vars(model).get("_modules", {}).get(attribute), nn.Module):
            model = inner
    return model


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's floating-point parameters."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
