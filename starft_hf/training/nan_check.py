"""NaN and infinity end a run at the step where they occur, naming the part they come from."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from starft_hf.utils.collectives import world_size


PIXELS = "the preprocessed images"
IMAGES = "the model's image embeddings"
CAPTIONS = "the model's caption embeddings"
SPURIOUS = "the model's spurious-caption embeddings"
SCALE = "the model's logit scale"
REFERENCE_IMAGES = "the reference's image embeddings"
REFERENCE_CANDIDATES = "the reference's caption embeddings"
BASE_LOSS = "the base loss"
REGULARIZER = "the regularizer"
GRADIENT = "the gradient"

_SMALLER = "Try a lower learning_rate, a longer warm-up (warmup_steps) or a smaller max_grad_norm"
_RANGE = "fp16 overflows above 65504, where bf16=True or full precision does not"
_REFERENCE = f"Set reference_dtype='bfloat16' or 'float32': {_RANGE}. If they come from a cache, remove it."

# In the order in which one is computed from another, with what to try where it is the first.
_ADVICE = {
    PIXELS: "Check what image_transform returns, and the mean and standard deviation of the image processor.",
    IMAGES: f"{_SMALLER}; {_RANGE}.",
    CAPTIONS: f"{_SMALLER}; {_RANGE}.",
    SPURIOUS: f"{_SMALLER}; {_RANGE}.",
    SCALE: f"{_SMALLER}.",
    REFERENCE_IMAGES: _REFERENCE,
    REFERENCE_CANDIDATES: _REFERENCE,
    BASE_LOSS: f"{_SMALLER}; with base_loss='cross_entropy', check the weights of the head.",
    REGULARIZER: "Try a smaller reg_weight or another regularizer; if it is your own, check it for logarithms and "
    "divisions of 0.",
    GRADIENT: f"{_SMALLER}; {_RANGE}.",
}

# A gradient scaler starts at 2**16 and halves with every step that it skips.
_MOST_SKIPPED = 40


class NaNCheck:
    """Stops a run whose losses or gradients are not finite, before the optimizer uses them.

    Parts of the losses are added batch by batch without waiting for the device. Once per optimizer step, all of them
    are checked together, in all processes: a process that stopped alone would leave the others waiting for it.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._skipped = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Add scalars, by the names of the parts they are sums of."""
        values = torch.stack([value.detach().float().reshape(()) for value in parts.values()])
        self._sums = values if self._sums is None else self._sums + values
        self._names = tuple(parts)

    def check(self, model: nn.Module, grad_norm: Any, step: int, *, scaled: bool) -> Any:
        """Check everything added since the last time, and the norm of the gradient, which is returned.

        Args:
            model: whose parameters are named if they are not finite.
            grad_norm: of all parameters in all processes, or None.
            step: the optimizer step that is about to be made, counted from 1.
            scaled: whether a gradient scaler is used, which finds its scale by skipping steps that overflow.

        Raises:
            FloatingPointError: in all processes, naming the step, the part and what to try.
        """
        bad = self._pop(grad_norm)
        overflowed = bad == [GRADIENT] and scaled
        self._skipped = self._skipped + 1 if overflowed else 0
        if not bad or (overflowed and self._skipped < _MOST_SKIPPED):
            return grad_norm
        first = next(name for name in _ADVICE if name in bad)
        advice = _ADVICE[first]
        wrong = _not_finite(model)
        if wrong:
            first = f"{len(wrong)} parameters of the model are not finite, such as {wrong[0]}"
            advice = f"If they are so before the first step, the model was saved that way; otherwise: {_SMALLER}."
        skipped = f" The gradient scaler has skipped {self._skipped} steps in a row." if overflowed else ""
        raise FloatingPointError(
            f"training stops at step {step}, with NaN or infinity in {', '.join(bad)}.{skipped} They start with: "
            f"{first}. {advice} The weights are those before this step, and checkpoints are unchanged: "
            "train(resume_from_checkpoint=True) resumes from the last one."
        )

    def _pop(self, grad_norm: Any) -> list[str]:
        """The names of what is not finite in any process, by one all-reduce and one synchronization."""
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
