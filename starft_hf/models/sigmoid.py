"""The bias that turns scaled similarities into the logits of a sigmoid: a model's own, or one that is added to it.

Models that were pre-trained with softmax have none. To tell whether an image has a class, they get one: a parameter
`logit_bias` beside the temperature, as SigLIP has it, which is trained and saved with the weights. Their similarities
are far from 0 whatever the class; those of CLIP are 100 times cosines of about 0.2. A bias of 0 would give every class
a probability of almost 1, and at learning rates of fine-tuning it would hardly move, so it starts where the mean
probability is the share of classes that images have.
"""

from pathlib import Path

import torch
from numpy.typing import ArrayLike
from safetensors import safe_open
from scipy.optimize import brentq
from scipy.special import expit, logit
from torch import Tensor, nn

from starft_hf.models.adapters import base_model_of
from starft_hf.models.families import family_of


BIAS = "logit_bias"
NO_BIAS = (
    "the {} has no logit_bias, so whether an image has a class is unknown; pass a model that was trained with "
    "base_loss='multi_label', or a sigmoid model such as SigLIP"
)
# Marks a model whose bias is not its own.
_IS_ADDED = "_starft_added_bias"


def has_bias(model: nn.Module) -> bool:
    """Whether a dual encoder, maybe under an adapter, has a bias, of its own or added."""
    return isinstance(getattr(base_model_of(model), family_of(base_model_of(model)).logit_bias or BIAS, None), Tensor)


def has_added_bias(model: nn.Module) -> bool:
    """Whether `add_bias` has added the bias of a model."""
    return getattr(base_model_of(model), _IS_ADDED, False) is True


def add_bias(model: nn.Module, value: Tensor | float) -> None:
    """Add a bias to a dual encoder without one, as a parameter of the dtype and device of its temperature."""
    inner = base_model_of(model)
    like = getattr(inner, family_of(inner).temperature)
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().clone().reshape(())
    inner.register_parameter(BIAS, nn.Parameter(value))
    setattr(inner, _IS_ADDED, True)


def remove_added_bias(model: nn.Module) -> None:
    """Remove a bias that was added: what trains without it would leave it behind."""
    if has_added_bias(model):
        inner = base_model_of(model)
        delattr(inner, BIAS)
        delattr(inner, _IS_ADDED)


def restore_added_bias(model: nn.Module, folder: str | Path) -> None:
    """Add the bias that is saved in `folder`, with a model or an adapter, if `model` has none."""
    if not has_bias(model) and (value := _saved_bias(Path(folder))) is not None:
        add_bias(model, value)


def _saved_bias(folder: Path) -> Tensor | None:
    for path in sorted([*folder.glob("model*.safetensors"), *folder.glob("adapter_model.safetensors")]):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.rpartition(".")[-1] == BIAS:
                    value: Tensor = file.get_tensor(name)
                    if value.numel() != 1:
                        raise ValueError(f"{str(path)!r} has a {BIAS} of shape {tuple(value.shape)}, not a number")
                    return value
    return None


def matched_bias(logits: ArrayLike, share: float) -> float:
    """The bias with which the mean probability of `logits` is `share`, which is above 0 and below 1."""
    values = torch.as_tensor(logits).double().flatten().numpy()
    # With the outermost logits at the bounds, all probabilities are below or above the share.
    low, high = logit(share) - values.max() - 1e-6, logit(share) - values.min() + 1e-6
    return float(brentq(lambda bias: expit(values + bias).mean() - share, low, high, xtol=1e-12))
