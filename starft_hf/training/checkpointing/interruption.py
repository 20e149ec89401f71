"""A run that is told to stop, by SIGTERM as a spot machine going away sends it, saves a checkpoint and says so."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from starft_hf.utils.collectives import all_agree


# EX_TEMPFAIL of sysexits.h: the same command again goes on.
INTERRUPTED = 75


class TrainingInterrupted(SystemExit):
    """Training was told to stop by SIGTERM, and a checkpoint was saved to go on from.

    Uncaught, it ends the process with exit code 75, without a traceback: the same command again, resuming, goes on.

    Attributes:
        checkpoint: the checkpoint, or None if the process was told to stop before or after training.
    """

    def __init__(self, checkpoint: Path | None = None):
        super().__init__(INTERRUPTED)
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        saved = "" if self.checkpoint is None else f"; the checkpoint {self.checkpoint} was saved"
        return f"stopped by SIGTERM{saved}. The same command goes on if it resumes (resume_from_checkpoint=True)"


class InterruptionCallback(TrainerCallback):
    """Stops after the step in which one of the processes was told to, with a checkpoint.

    What is due at that step, such as an evaluation, is done first, so that the resumed run has the same log.
    """

    def __init__(self) -> None:
        self.requested = False
        self._stopping = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stopping = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The device has just been waited for, to see that the gradient is finite; after the step it would be again.
        self._stopping = not all_agree(not self.requested, args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._stopping:
            # What ends with the epoch comes after this, and belongs into the checkpoint.
            control.should_save = not _ends_epoch(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._stopping:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stopping:
            raise TrainingInterrupted(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for a request to stop, unless there is a handler of the user's own for it."""

        def request(number: int, frame: FrameType | None) -> None:
            self.requested = True

        self.requested = False
        with _handling(request):
            yield


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end this process as training does, where there is nothing to save: before training and after."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TrainingInterrupted

    with _handling(end):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    former = signal.getsignal(signal.SIGTERM)
    ours = getattr(former, "__module__", None) == __name__
    if threading.current_thread() is not threading.main_thread() or not (former is signal.SIG_DFL or ours):
        yield
        return
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _ends_epoch(state: TrainerState) -> bool:
    return state.epoch is not None and float(state.epoch).is_integer()
