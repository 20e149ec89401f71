"""Checkpoints that a run goes on from as if it had never ended."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerControl
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import logging

from starft_hf.evaluation.results import EvaluationResult
from starft_hf.hub.record import RunRecord
from starft_hf.training.callbacks import RunningLosses, save_callbacks, tell_checkpoint
from starft_hf.training.checkpointing.files import (
    CheckpointError,
    Flaw,
    flaw_of,
    last_good_checkpoint,
    mark_complete,
    marked_incomplete,
    read_content,
    set_aside,
)
from starft_hf.training.checkpointing.interruption import InterruptionCallback, TrainingInterrupted
from starft_hf.training.checkpointing.run_settings import differences, run_identity
from starft_hf.training.configuration import StarFTConfig
from starft_hf.utils.collectives import all_agree, from_first, leave, rank


logger = logging.get_logger(__name__)


class ResumingMixin(Trainer):
    """The part of `StarFTTrainer` that writes checkpoints and goes on from them."""

    args: StarFTConfig
    record: RunRecord
    zero_shot_results: dict[str, EvaluationResult]
    note_start: Callable[[], None]
    _running: RunningLosses
    _interruption: InterruptionCallback
    control: TrainerControl
    _identity: dict[str, Any] | None = None
    _to_push: str | None = None
    _held_limit: int | None = None
    _passed_over: Sequence[Flaw] = ()

    # Training

    def train(
        self, resume_from_checkpoint: str | PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """`Trainer.train`, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint to go on from, as if the run had never ended; or True for the last
                good one in `output_dir`, and to start from the beginning where there is none.
            args: of `Trainer.train`.
            kwargs: of `Trainer.train`.

        Raises:
            CheckpointError: as `checkpoint_to_resume`, before anything else; or if a checkpoint cannot be written.
            TrainingInterrupted: after SIGTERM, once a checkpoint is saved; uncaught it is exit code 75.
        """
        if self.train_dataset is None:
            raise ValueError("there is nothing to train on; pass train_dataset")
        self.note_start()
        with self._resuming(resume_from_checkpoint) as checkpoint:
            return self._train(checkpoint, *args, **kwargs)

    def _train(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> Any:
        return super().train(checkpoint, *args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        loader = super()._get_dataloader(*args, **kwargs)
        # A loader draws a seed for its workers, persistent ones once in a run: out of the global generator, a resumed
        # run would draw once more, and everything after it, such as dropout, would differ.
        base = getattr(loader, "base_dataloader", loader)
        base.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that ended in the middle of an epoch would take a step more before it looks.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        # `eval_on_start` is about the model before its first step, which was evaluated by the run that took it.
        if skip_scheduler and self.state.global_step > 0:
            return None
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    # Going on

    def checkpoint_to_resume(self, resume_from_checkpoint: str | PathLike[str] | bool | None) -> Path | None:
        """The checkpoint that `train` would go on from, checked; None to start from the beginning.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last one in `output_dir` that can be resumed from.
                Those that cannot, such as one that a killed run left half written, are passed over with a warning.

        Raises:
            CheckpointError: if the checkpoint is damaged, or was written by a run with other settings, pool, classes,
                model or data that change the outcome, naming the differences. With
                `ignore_mismatched_settings=True` these are a warning.
        """
        path, flaws = from_first(lambda: self._find(resume_from_checkpoint))
        self._passed_over = flaws
        for flaw in flaws:
            logger.warning("The checkpoint %s is passed over.", flaw)
        if resume_from_checkpoint is True and path is None:
            logger.warning(
                "There is no checkpoint to resume from in %s; training starts from the beginning.",
                self.args.output_dir,
            )
        elif flaws:
            logger.warning("Training goes on from %s.", path)
        return path

    def _find(self, wanted: str | PathLike[str] | bool | None) -> tuple[Path | None, list[Flaw]]:
        if not wanted:
            return None, []
        path: Path | None
        flaws: list[Flaw] = []
        if wanted is True:
            path, flaws = last_good_checkpoint(str(self.args.output_dir))
        else:
            path = Path(str(wanted))
            reason = flaw_of(path)
            if reason is not None:
                other = last_good_checkpoint(path.parent)[0]
                raise CheckpointError(
                    f"{str(path)!r} cannot be resumed from: {reason}; "
                    + (f"the last good checkpoint there is {other}" if other else "there is no good checkpoint there")
                )
        if path is not None:
            self._check_identity(path)
        return path, flaws

    def _check_identity(self, folder: Path) -> None:
        content = read_content(folder)
        if content is None:
            logger.warning(
                "%s was not written by StarFTTrainer, so it is unknown whether its run had the same settings.", folder
            )
            return
        if content.get("save_only_model"):
            raise CheckpointError(
                f"{folder} was written with save_only_model=True, so the state of the optimiser is not there to go on "
                "with; pass it as `model` to start a new run from its weights"
            )
        found = list(differences(content["identity"], self._make_identity()))
        if found and not self.args.ignore_mismatched_settings:
            raise CheckpointError(
                f"{folder} was written by another run: {'; '.join(found)}. Go back to what it was, choose another "
                "output_dir to start anew, or set ignore_mismatched_settings=True to go on all the same"
            )
        if found:
            logger.warning("Going on from %s, which was written by another run: %s.", folder, "; ".join(found))

    def _make_identity(self) -> dict[str, Any]:
        if self._identity is None:
            self.note_start()
            self._identity = run_identity(self.args, self.record, self.model, self.train_dataset)
        return self._identity

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        tell_checkpoint(self.callback_handler.callbacks, resume_from_checkpoint)
        content = read_content(Path(resume_from_checkpoint)) or {}
        self._running.restore(content.get("losses"), self.args.device)
        for name, result in content.get("zero_shot", {}).items():
            self.zero_shot_results[name] = EvaluationResult.from_dict(result)

    @contextmanager
    def _resuming(self, wanted: str | PathLike[str] | bool | None) -> Iterator[str | None]:
        """Training from a checkpoint, if there is one; it ends with `TrainingInterrupted` if it is told to."""
        saving = self.args.save_strategy != "no"
        listening = saving and not self.args.save_only_model
        self._identity = None
        if self.args.should_save and saving:
            self._make_identity()
        path = self.checkpoint_to_resume(wanted)
        self._running.restore(None, self.args.device)
        if rank() == 0:
            set_aside(self._passed_over)
        all_agree(True, self.args.device)
        try:
            with self._interruption.listening() if listening else nullcontext():
                yield None if path is None else str(path)
        except TrainingInterrupted as interrupted:
            self.is_in_train = False
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            logger.warning("%s.", interrupted)
            leave()
            raise
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RuntimeError(
                f"a process that loads data ended ({' '.join(str(error).split())}); usually it was killed for want "
                "of memory or of shared memory (/dev/shm), or a library crashed in it. Lower "
                "dataloader_num_workers, or set it to 0 to see the error, and go on with resume_from_checkpoint=True"
            ) from error
        # The last step was taken already when it was told to, and what comes after training must not begin.
        if listening and not all_agree(not self._interruption.requested, self.args.device):
            raise TrainingInterrupted(last_good_checkpoint(str(self.args.output_dir))[0])

    # Writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """`Trainer._save_checkpoint`, such that there is a good checkpoint at every moment.

        It counts once all is written; only then older ones are removed, and it is pushed.
        """
        run_dir = self._get_output_dir(trial)
        folder = Path(run_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        writes = self.args.should_save
        with marked_incomplete(folder) if writes else nullcontext():
            all_agree(True, self.args.device)
            self._held_limit, self.args.save_total_limit = self.args.save_total_limit, None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._held_limit, self.args.save_total_limit = None, self._held_limit
            save_callbacks(self.callback_handler.callbacks, folder, self.args, self.state, self.model)
            losses = self._running.state()
            all_agree(True, self.args.device)
            if writes:
                content = {
                    "step": self.state.global_step,
                    "identity": self._make_identity(),
                    "losses": losses,
                    "zero_shot": {name: result.as_dict() for name, result in self.zero_shot_results.items()},
                    "save_only_model": self.args.save_only_model,
                }
                mark_complete(folder, content)
            # Where one that has ended takes the others down, it is not to end before.
            all_agree(True, self.args.device)
        if self._to_push is not None:
            path, self._to_push = self._to_push, None
            super()._push_from_checkpoint(path)
        if writes:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._to_push = checkpoint_folder

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # The arguments are saved with the weights, as they are.
        held, self.args.save_total_limit = self.args.save_total_limit, self._held_limit or self.args.save_total_limit
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.save_total_limit = held

    def _listen_to_signals(self) -> None:
        """Have SIGTERM save a checkpoint, by a callback that comes after those of the user.

        What transformers has for it (`enable_jit_checkpoint`) saves within a step, where the random state is not what
        it was before, leaves several processes waiting for each other, and leaves out what callbacks write.
        """
        self._interruption = InterruptionCallback()
        self.add_callback(self._interruption)
        replaced = self.pop_callback(JITCheckpointCallback)
        if replaced is not None and replaced.jit_manager is not None:
            signal.signal(signal.SIGTERM, replaced.jit_manager._original_sigterm_handler or signal.SIG_DFL)
