"""The schedule of the learning rate: its warm-up, which may start above 0, and what a plateau is."""

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The schedules of transformers whose warm-up starts at 0.
_WARMED_UP = (
    *("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt"),
    *("constant_with_warmup", "warmup_stable_decay"),
)


def without_warmup(args: Any) -> str | None:
    """Why no warm-up of a run starts at 0, as a clause; None if one does."""
    schedule, optimizer = (getattr(value, "value", value) for value in (args.lr_scheduler_type, args.optim))
    if args.warmup_steps == 0:
        return "with warmup_steps=0"
    if schedule not in _WARMED_UP:
        return f"with lr_scheduler_type={schedule!r}"
    # These have a schedule of their own for every parameter, which only their hooks know.
    return f"with optim={optimizer!r}" if "layerwise" in str(optimizer) else None


def schedule_of(scheduler: Any, args: Any, steps: int) -> Any:
    """The schedule of a run of `steps` optimizer steps; `scheduler` is that of Trainer, whose warm-up starts at 0.

    One that lowers the rate on a plateau takes the metric for a loss, whatever `greater_is_better` says; here it does
    not, unless its `mode` is set.

    With `warmup_from_zero=False`, step s of w warm-up steps, counted from 0, has (s + 1) / w of the learning rate
    rather than s / w. All later steps are the same: the last step of the warm-up and the first one after it have the
    whole learning rate.
    """
    if isinstance(scheduler, ReduceLROnPlateau) and args.greater_is_better:
        return ReduceLROnPlateau(scheduler.optimizer, **{"mode": "max", **(args.lr_scheduler_kwargs or {})})
    if args.warmup_from_zero or without_warmup(args) is not None:
        return scheduler
    warmup = args.get_warmup_steps(steps)
    return LambdaLR(scheduler.optimizer, [_raised(factor, warmup) for factor in scheduler.lr_lambdas])


def _raised(factor: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    return lambda step: factor(step + 1 if step < warmup else step)


def warn_of_warmup(args: Any, steps: int) -> None:
    """Warn if a run of `steps` optimizer steps ends within its warm-up."""
    warmup = args.get_warmup_steps(steps)
    if warmup >= steps and without_warmup(args) is None:
        logger.warning(
            "The warm-up takes %d steps and the run ends after %d, at %.0f%% of learning_rate=%g; set warmup_steps to "
            "a smaller number, or to a fraction of the run such as 0.1.",
            warmup,
            steps,
            100 * (steps - args.warmup_from_zero) / warmup,
            args.learning_rate,
        )
