"""How the weight of the regularizer moves over a run."""

from collections.abc import Callable
from dataclasses import dataclass

from starft_hf.utils.names import unknown_name


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Steps are optimiser steps; both counts start at 0."""

    step: int
    max_steps: int
    epoch: int
    num_epochs: int


# "epoch_linear" is the published one: it is 0 throughout the last epoch. "linear" falls the same way per step.
_SCHEDULES: dict[str, Callable[[Progress], float]] = {
    "linear": lambda progress: 1 - (progress.step + 1) / progress.max_steps,
    "epoch_linear": lambda progress: 1 - (progress.epoch + 1) / progress.num_epochs,
    "constant": lambda progress: 1.0,
}


SCHEDULE_NAMES = tuple(_SCHEDULES)


def reg_weight_at(schedule: str, reg_weight: float, progress: Progress) -> float:
    """The weight of the regularizer in the step that `progress` points at.

    Raises:
        ValueError: if `schedule` is not one of `SCHEDULE_NAMES`.
    """
    if schedule not in _SCHEDULES:
        raise ValueError(unknown_name("reg_schedule", schedule, SCHEDULE_NAMES))
    return reg_weight * _SCHEDULES[schedule](progress)
