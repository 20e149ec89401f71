"""The inverse temperature while training: its limit, and a warning when it diverges."""

from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from starft_hf.models.encoder import limit_logit_scale, logit_scale_of
from starft_hf.models.modes import unwrapped


logger = logging.get_logger(__name__)

# Where CLIP's authors limit it.
USUAL_LIMIT = 100.0
# Half precision rounds the logarithm of 100 by up to this.
_ROUNDING = 1.02
# How far from where it started a scale counts as running away: above the usual limit, and below.
_MOST, _LEAST = 1.1, 0.1


def check_limit(model: nn.Module, limit: float | None) -> None:
    """Raise ValueError if the inverse temperature of a model starts above `limit`, other than by rounding."""
    start = logit_scale_of(model).item()
    if limit is not None and start > limit * _ROUNDING:
        raise ValueError(
            f"max_logit_scale={limit:g}, and the logit scale of the {type(model).__name__} starts at {start:.4g}: the "
            f"first step would lower it, and change what the model predicts. Set max_logit_scale={int(start) + 1}, or "
            "None for no limit"
        )


class LogitScaleCallback(TrainerCallback):
    """Limits the inverse temperature after every optimizer step, and warns once when it diverges.

    Args:
        start: where it starts.
        limit: the largest value; None for no limit.
    """

    def __init__(self, start: float, limit: float | None):
        self.limit = limit
        self._start = start
        self._warned = False

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.limit is not None:
            limit_logit_scale(unwrapped(model), self.limit)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        scale = (logs or {}).get("logit_scale")
        if scale is None or self._warned or not state.is_world_process_zero:
            return
        rises = self.limit is None and scale > max(USUAL_LIMIT, _MOST * self._start)
        if rises or scale < _LEAST * self._start:
            self._warned = True
            limit = f", set max_logit_scale={USUAL_LIMIT:g}, which CLIP was trained with" if rises else ""
            logger.warning(
                "The logit scale diverges: it started at %.4g and is %.4g at step %d. Try a lower learning_rate%s, "
                "or freeze=['logit_scale'].",
                self._start,
                scale,
                state.global_step,
                limit,
            )
