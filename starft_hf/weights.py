"""Interpolation of weights."""

import copy
from typing import TypeVar

import torch
from torch import nn


ModelT = TypeVar("ModelT", bound=nn.Module)


def interpolate(model_a: ModelT, model_b: nn.Module, alpha: float) -> ModelT:
    """A new model with weights `(1 - alpha) * a + alpha * b`, as in WiSE-FT (arXiv 2109.01903).

    Args:
        model_a: usually the zero-shot model.
        model_b: usually the fine-tuned model, of the same architecture.
        alpha: share of `model_b`, from 0 to 1.

    Raises:
        ValueError: if `alpha` is outside [0, 1] or the weights do not match, naming the first difference.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it is the share of the second model, from 0 to 1")
    state_a, state_b = model_a.state_dict(), model_b.state_dict()
    for name in [*state_a, *state_b]:
        shapes = [tuple(state[name].shape) if name in state else "nothing" for state in (state_a, state_b)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the models differ: {name!r} is {shapes[0]} in the first and {shapes[1]} in the second; only models "
                "of one architecture can be interpolated"
            )
    merged = copy.deepcopy(model_a)
    merged.load_state_dict(
        {
            name: torch.lerp(value, state_b[name].to(value), alpha) if value.is_floating_point() else value
            for name, value in state_a.items()
        }
    )
    return merged
