"""NaN and infinity end a run at the step where they come up, with the part that they come from."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from starft_hf.utils.collectives import world_size


PIXELS = "the preprocessed images"
IMAGES = "the model's image embeddings"
CAPTIONS = "the model's caption embeddings"
SPURIOUS = "the model's spurious-caption embeddings"
SCALE = "the model's logit scale"
REFERENCE_IMAGES = "the reference's image embeddings"
REFERENCE_COLUMNS = "the reference's caption embeddings"
BASE_LOSS = "the base loss"
REGULARIZER = "the regularizer"
GRADIENT = "the gradient"

_SMALLER = "Try a lower learning_rate, a longer warm-up (warmup_steps) or a smaller max_grad_norm"
_RANGE = "fp16 overflows above 65504, where bf16=True or full precision does not"

# In the order in which one is computed from another, with what to try where it is the first.
_ADVICE = {
    PIXELS: "Look at what image_transform returns, and at the mean and standard deviation of the image processor.",
    IMAGES: f"{_SMALLER}; {_RANGE}.",
    CAPTIONS: f"{_SMALLER}; {_RANGE}.",
    SPURIOUS: f"{_SMALLER}; {_RANGE}.",
    SCALE: f"{_SMALLER}.",
    REFERENCE_IMAGES: f"Set reference_dtype='bfloat16' or 'float32': {_RANGE}. If they come from a cache, remove it.",
    REFERENCE_COLUMNS: f"Set reference_dtype='bfloat16' or 'float32': {_RANGE}. If they come from a cache, remove it.",
    BASE_LOSS: f"{_SMALLER}; with base_loss='cross_entropy', look at the weights of the head.",
    REGULARIZER: "Try a smaller reg_weight or another regularizer; if it is one of your own, look for logarithms and "
    "divisions of 0 in it.",
    GRADIENT: f"{_SMALLER}; {_RANGE}.",
}

# A gradient scaler starts at 2**16 and halves with every step that it skips.
_MOST_SKIPPED = 40


class FinitenessCheck:
    """Stops a run whose losses or gradients are not finite, before the optimiser has seen them.

    Parts of the losses are added batch by batch without waiting for the device. One look per optimiser step tells all
    of them together, in all processes: a process that stopped alone would leave the others waiting for it.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._skipped = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Add scalars by the names of what they are finite with."""
        values = torch.stack([value.detach().float().reshape(()) for value in parts.values()])
        self._sums = values if self._sums is None else self._sums + values
        self._names = tuple(parts)

    def look(self, model: nn.Module, grad_norm: Tensor | float | None, step: int, *, scaled: bool) -> None:
        """Look at everything added since the last time, and at the norm of the gradient.

        Args:
            model: whose parameters are named where they are not finite.
            grad_norm: of all parameters in all processes; None where it is not known.
            step: the optimiser step that is about to be made, from 1.
            scaled: whether a gradient scaler is at work. It skips steps whose gradient is not finite, which is how it
                finds its scale, and no failure.

        Raises:
            FloatingPointError: in all processes, naming the step, the part and what to try.
        """
        bad = self._take(grad_norm)
        overflowed = bad == [GRADIENT] and scaled
        self._skipped = self._skipped + 1 if overflowed else 0
        if not bad or (overflowed and self._skipped < _MOST_SKIPPED):
            return
        first = next(name for name in _ADVICE if name in bad)
        advice = _ADVICE[first]
        wrong = _not_finite(model)
        if wrong:
            first = f"{len(wrong)} parameters of the model are not finite, such as {wrong[0]}"
            advice = f"If that is so before the first step, the model was saved so; else: {_SMALLER}."
        skipped = f" The gradient scaler has skipped {self._skipped} steps in a row." if overflowed else ""
        raise FloatingPointError(
            f"training stops at step {step}, where there is NaN or infinity in {', '.join(bad)}.{skipped} It begins "
            f"with this: {first}. {advice} The weights are those of before the step, and checkpoints are as they "
            "were: train(resume_from_checkpoint=True) goes on from the last one."
        )

    def _take(self, grad_norm: Tensor | float | None) -> list[str]:
        """The names of what is not finite in any process, by one exchange and one wait for the device."""
        values, names = self._sums, self._names
        self._sums, self._names = None, ()
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        if isinstance(grad_norm, Tensor):
            norm = grad_norm.detach().float().reshape(1)
            values = norm if values is None else torch.cat([values, norm.to(values.device)])
            names = (*names, GRADIENT)
        bad = [] if values is None else _anywhere(~values.isfinite())
        found = [name for name, is_bad in zip(names, bad, strict=True) if is_bad]
        if isinstance(grad_norm, float) and not math.isfinite(grad_norm):
            found.append(GRADIENT)
        return found


class FinitenessMixin(Trainer):
    """The part of `StarFTTrainer` that stops a run whose numbers have gone bad."""

    finiteness: FinitenessCheck

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.finiteness = FinitenessCheck()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # The last thing that Trainer does before the optimiser makes its step.
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        step, scaled = self.state.global_step + 1, self.accelerator.scaler is not None
        self.finiteness.look(self.model, norm, step, scaled=scaled)
        return norm


def _anywhere(flags: Tensor) -> list[bool]:
    """Which of the flags are set in any process."""
    if world_size() > 1:
        flags = flags.int()
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def _not_finite(model: nn.Module) -> list[str]:
    """The names of the parameters that are not finite, as far as this process holds them."""
    found = []
    for name, parameter in model.named_parameters():
        local: Any = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if not bool(local.detach().isfinite().all()):
            found.append(name)
    return found
