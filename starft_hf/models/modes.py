"""What state a model is in: training or eval mode, wrapped or not, its dtype."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


# Attention keeps its dropout rate as a number, under one of these names.
_DROPOUT_RATES = ("dropout", "attention_dropout")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; on exit, the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether rows of a batch influence each other inside the model in training mode, through batch statistics."""
    return any(
        isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats for module in model.modules()
    )


def differs_in_training(model: nn.Module) -> bool:
    """Whether training mode and eval mode give different outputs: through dropout or batch statistics."""
    rates = [vars(module).get(name) for module in model.modules() for name in _DROPOUT_RATES]
    rates += [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return has_batch_statistics(model) or any(isinstance(rate, float) and rate > 0 for rate in rates)


def unwrapped(model: nn.Module) -> Any:
    """The model inside a parallel wrapper or a compiled module."""
    for attribute in ("_orig_mod", "module"):
        while isinstance(inner := vars(model).get("_modules", {}).get(attribute), nn.Module):
            model = inner
    return model


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's floating-point parameters."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
