"""SIGTERM, as preempted machines receive it, makes a run save a checkpoint and exit with a code of its own."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from starft_hf.training.checkpointing.files import last_valid_checkpoint
from starft_hf.utils.collectives import all_processes_agree, destroy_process_group
from starft_hf.utils.waiting import give_up


logger = logging.get_logger(__name__)

# EX_TEMPFAIL of sysexits.h: the same command resumes.
INTERRUPTED = 75


class TrainingInterrupted(SystemExit):
    """Training was stopped by SIGTERM, after a checkpoint was saved to resume from.

    Uncaught, it ends the process with exit code 75, without a traceback.

    Attributes:
        checkpoint: the checkpoint, or None if the signal came before or after training.
        was_saved: whether it was saved because of the signal, rather than before.
    """

    def __init__(self, checkpoint: Path | None = None, was_saved: bool = True):
        super().__init__(INTERRUPTED)
        self.checkpoint = checkpoint
        self.was_saved = was_saved

    def __str__(self) -> str:
        words = "the checkpoint {} was saved" if self.was_saved else "the last checkpoint is {}"
        saved = "" if self.checkpoint is None else f"; {words.format(self.checkpoint)}"
        return f"stopped by SIGTERM{saved}. Resume it with resume_from_checkpoint=True"


class InterruptionCallback(TrainerCallback):
    """Stops training after the step in which one of the processes received SIGTERM, with a checkpoint.

    What is due at that step, such as an evaluation, is done first, so that the resumed run has the same log.

    `enable_jit_checkpoint` of transformers saves within a step, where the random state is not what it was before,
    leaves several processes waiting for each other, and leaves out what callbacks write: this callback replaces it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.stopping = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stopping = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The NaN check has just synchronized the device; after the step it would have to be done again.
        self.stopping = not all_processes_agree(not self.requested, args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopping:
            # What ends with the epoch comes after this, and belongs in the checkpoint.
            control.should_save = not _ends_epoch(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopping:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stopping:
            raise TrainingInterrupted(Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Before the first step there is nothing to save. Later, the resumed run needs the evaluation that is due.
        if self.requested and state.global_step == 0:
            raise TrainingInterrupted

    @contextmanager
    def listening(self, args: TrainingArguments) -> Iterator[None]:
        """Treat SIGTERM as a request to stop, unless the user has a handler of their own for it.

        Runs that save nothing to resume from leave SIGTERM alone.

        Raises:
            TrainingInterrupted: on exit, in all processes, if a request came too late for a step to see it.
        """
        self.requested = False
        if not _resumes(args):
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            self.requested = True
            give_up(True)

        try:
            with _handling(request):
                yield
        finally:
            give_up(False)
            # A later evaluation is not part of this training.
            requested, self.requested = self.requested, False
        if not all_processes_agree(not requested, args.device):
            raise TrainingInterrupted(last_valid_checkpoint(str(args.output_dir))[0], was_saved=False)

    @contextmanager
    def ending_at_once(self, args: TrainingArguments) -> Iterator[None]:
        """Let SIGTERM stop what has nothing to save; what was written until then is used by the run that resumes.

        Runs that save nothing to resume from leave SIGTERM alone.
        """
        with ended_by_sigterm() if _resumes(args) else nullcontext():
            yield


def replace_jit_checkpoint(trainer: Any) -> InterruptionCallback:
    """Give a trainer an `InterruptionCallback`, after the callbacks of the user, in place of transformers' own."""
    interruption = InterruptionCallback()
    trainer.add_callback(interruption)
    replaced = trainer.pop_callback(JITCheckpointCallback)
    if replaced is not None and replaced.jit_manager is not None:
        signal.signal(signal.SIGTERM, replaced.jit_manager._original_sigterm_handler or signal.SIG_DFL)
    return interruption


def end_interrupted(trainer: Any, interrupted: TrainingInterrupted) -> None:
    """Do what is due when a training ends early: callbacks learn of it, and the processes part."""
    if trainer.is_in_train:
        trainer.is_in_train = False
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    logger.warning("%s.", interrupted)
    destroy_process_group()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM end this process as training does, where there is nothing to save: before training and after."""

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


def _resumes(args: TrainingArguments) -> bool:
    return args.save_strategy != "no" and not args.save_only_model


def _ends_epoch(state: TrainerState) -> bool:
    return state.epoch is not None and float(state.epoch).is_integer()
