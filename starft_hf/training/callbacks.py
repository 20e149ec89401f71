"""Callbacks and running state of the trainer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from starft_hf.data.examples import Epoch
from starft_hf.training.step import StepLosses
from starft_hf.utils.collectives import mean_over_processes


class EpochCallback(TrainerCallback):
    """Tells the draws of the training examples which epoch begins.

    Not every wrapper of data loaders forwards the epoch to the data set.
    """

    def __init__(self, epoch: Epoch):
        self.epoch = epoch

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # On resuming the state is in the middle of the epoch; at a boundary it may be a rounding error below.
        self.epoch.value = int((state.epoch or 0) + 1e-6)


class BatchPlaceCallback(TrainerCallback):
    """Counts the batches whose gradients an optimiser step accumulates."""

    def __init__(self) -> None:
        self._next = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._next = 0

    def take(self) -> int:
        """The place of the batch that is computed now, from 0; the next call gives that of the next one."""
        self._next += 1
        return self._next - 1


class ResumingCallback(TrainerCallback, ABC):
    """A callback that keeps something in checkpoints, and needs to know from which one a run resumes.

    `Trainer` does not tell its callbacks.
    """

    @abstractmethod
    def resume_from(self, checkpoint: str | PathLike[str]) -> None:
        """The next training resumes from this folder."""

    @abstractmethod
    def save_to(self, folder: Path, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Write what is kept into a checkpoint that is being written; called in all processes.

        `on_save`, which comes after it, is too late for that: the checkpoint counts as complete by then.
        """


def tell_checkpoint(callbacks: Iterable[TrainerCallback], checkpoint: str) -> None:
    """Tell those who need to know from which folder the next training resumes."""
    for callback in callbacks:
        if isinstance(callback, ResumingCallback):
            callback.resume_from(checkpoint)


def save_callbacks(
    callbacks: Iterable[TrainerCallback], folder: Path, args: TrainingArguments, state: TrainerState, model: nn.Module
) -> None:
    """Let those who keep something in checkpoints write it into this one."""
    for callback in callbacks:
        if isinstance(callback, ResumingCallback):
            callback.save_to(folder, args, state, model)


class RunningLosses:
    """Means of the losses since they were last taken, without a synchronisation per step."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, losses: StepLosses) -> None:
        """Add the losses of one batch."""
        values = torch.stack([losses.loss, losses.base_loss, losses.reg_loss]).detach()
        self._sum = values if self._sum is None else self._sum + values
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means over steps and processes, and start anew; empty if nothing was added."""
        if self._sum is None:
            return {}
        means = mean_over_processes(self._sum / self._count).tolist()
        self._sum, self._count = None, 0
        return dict(zip(("loss", "base_loss", "reg_loss"), means, strict=True))

    def state(self) -> dict[str, Any] | None:
        """What has been added since, for JSON: the mean over processes, which call this together."""
        if self._sum is None:
            return None
        sums = mean_over_processes(self._sum)
        return {"sums": sums.tolist(), "dtype": str(sums.dtype).removeprefix("torch."), "count": self._count}

    def restore(self, state: dict[str, Any] | None, device: torch.device) -> None:
        """Go on from a state."""
        self._sum, self._count = None, 0
        if state is not None:
            self._sum = torch.tensor(state["sums"], dtype=getattr(torch, state["dtype"]), device=device)
            self._count = int(state["count"])
