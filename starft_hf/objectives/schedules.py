"""How the weight of the regularizer changes over a run."""

from collections.abc import Callable
from dataclasses import dataclass

from starft_hf.utils.names import unknown_name


@dataclass(frozen=True)
class Progress:
    """The progress of a run. Steps are optimizer steps; both counts start at 0."""

    step: int
    max_steps: int
    epoch: int
    num_epochs: int


# "epoch_linear" is the paper's: it is 0 throughout the last epoch. "linear" decreases in the same way per step.
_SCHEDULES: dict[str, Callable[[Progress], float]] = {
    "linear": lambda progress: 1 - (progress.step + 1) / progress.max_steps,
    "epoch_linear": lambda progress: 1 - (progress.epoch + 1) / progress.num_epochs,
    "constant": lambda progress: 1.0,
}
SCHEDULE_NAMES = tuple(_SCHEDULES)


def reg_weight_at(schedule: str, reg_weight: float, progress: Progress) -> float:
    """The weight of the regularizer in the step of `progress`."""
    if schedule not in _SCHEDULES:
        raise ValueError(unknown_name("reg_schedule", schedule, SCHEDULE_NAMES))
    return reg_weight * _SCHEDULES[schedule](progress)
