"""Callbacks of every run, and what callbacks keep in checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from starft_hf.data.examples import Epoch
from starft_hf.training.sampling import training_stream
from starft_hf.training.trackers import report_to_trackers


class EpochCallback(TrainerCallback):
    """Sets the epoch that the draws of the training examples depend on, and where a resumed iterable one starts.

    Not every wrapper of data loaders forwards the epoch to the dataset.
    """

    def __init__(self, epoch: Epoch):
        self.epoch = epoch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        examples = training_stream(kwargs.get("train_dataloader"))
        if examples is not None:
            seen = 0 if args.ignore_data_skip else state.global_step * args.gradient_accumulation_steps
            examples.share = replace(examples.share, start=seen)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # On resuming the state is in the middle of the epoch; at a boundary it may be a rounding error below.
        self.epoch.value = int((state.epoch or 0) + 1e-6)


class BatchCounterCallback(TrainerCallback):
    """Counts the batches whose gradients an optimizer step accumulates."""

    def __init__(self) -> None:
        self._next = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._next = 0

    def advance(self) -> int:
        """The place of the current batch in its step, from 0; the next call gives that of the next batch."""
        self._next += 1
        return self._next - 1


class NamedProgressCallback(ProgressCallback):
    """Trainer's progress bars, with names."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        _set_name(self.training_bar, "Training")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        super().on_prediction_step(*args, **kwargs)
        _set_name(self.prediction_bar, "Evaluating")


def _set_name(bar: Any, name: str) -> None:
    if bar is not None and not bar.desc:
        # A rate after one step at once would be nonsense.
        bar.set_description(name, refresh=bar.n == 0)


def complete_callbacks(trainer: Any) -> None:
    """Give a trainer the callbacks that depend on those it has: named progress bars, and the report for trackers."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) is ProgressCallback:
            trainer.remove_callback(callback)
            trainer.add_callback(NamedProgressCallback())
    report_to_trackers(trainer)


class ResumingCallback(TrainerCallback, ABC):
    """A callback that keeps something in checkpoints, and needs to know from which one a run resumes.

    `Trainer` passes neither to its callbacks.
    """

    @abstractmethod
    def resume_from(self, checkpoint: str | PathLike[str]) -> None:
        """The next training resumes from this folder."""

    @abstractmethod
    def save_to(self, folder: Path, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Write what is kept into a checkpoint that is being written; called in all processes.

        `on_save` comes too late for that: the checkpoint counts as complete by then.
        """


def resuming_callbacks(callbacks: Iterable[TrainerCallback]) -> list[ResumingCallback]:
    """Those of `callbacks` that keep something in checkpoints."""
    return [callback for callback in callbacks if isinstance(callback, ResumingCallback)]
