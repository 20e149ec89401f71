"""Finding, writing and reading the checkpoints of a run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import logging

from starft_hf.training.checkpointing.files import (
    CheckpointError,
    Flaw,
    flaw_of,
    last_valid_checkpoint,
    mark_complete,
    marked_incomplete,
    read_content,
    remove_from_rotation,
)
from starft_hf.training.checkpointing.run_settings import differences
from starft_hf.utils.collectives import all_processes_agree, rank, run_on_main_process


logger = logging.get_logger(__name__)


class Checkpointer:
    """The checkpoints of a run, such that there is a valid one at every moment.

    A checkpoint is valid once all of it is on the disk. Only then is it published, and are older ones removed.

    Args:
        args: the settings of the run.
        run_settings: computes what a resumed run must share with the one that wrote a checkpoint, for JSON.
    """

    def __init__(self, args: TrainingArguments, run_settings: Callable[[], dict[str, Any]]):
        self.args: Any = args
        self._compute_settings = run_settings
        self._settings: dict[str, Any] | None = None
        self._flaws: Sequence[Flaw] = ()
        self._postponed: list[Callable[[], None]] | None = None

    @property
    def run_settings(self) -> dict[str, Any]:
        """What a resumed run must share, computed once per training."""
        if self._settings is None:
            self._settings = self._compute_settings()
        return self._settings

    # Finding

    def start(self, wanted: str | PathLike[str] | bool | None) -> str | None:
        """The checkpoint that a training starts from, as `find`; flawed ones are removed from rotation."""
        self._settings = None
        if self.args.should_save and self.args.save_strategy != "no":
            # Before training changes the weights, which are part of them.
            _ = self.run_settings
        path = self.find(wanted)
        if rank() == 0:
            remove_from_rotation(self._flaws)
        self._wait()
        return None if path is None else str(path)

    def find(self, wanted: str | PathLike[str] | bool | None) -> Path | None:
        """The checkpoint to resume from, as `StarFTTrainer.checkpoint_to_resume` documents; in all processes."""
        path, self._flaws = run_on_main_process(lambda: self._find(wanted))
        for flaw in self._flaws:
            logger.warning("The checkpoint %s is skipped.", flaw)
        if wanted is True and path is None:
            logger.warning(
                "There is no checkpoint to resume from in %s; training starts from the beginning.",
                self.args.output_dir,
            )
        elif self._flaws:
            logger.warning("Training resumes from %s.", path)
        return path

    def _find(self, wanted: str | PathLike[str] | bool | None) -> tuple[Path | None, list[Flaw]]:
        if not wanted:
            return None, []
        path: Path | None
        flaws: list[Flaw] = []
        if wanted is True:
            path, flaws = last_valid_checkpoint(str(self.args.output_dir))
        else:
            path = Path(str(wanted))
            reason = flaw_of(path)
            if reason is not None:
                other = last_valid_checkpoint(path.parent)[0]
                instead = f"the last valid checkpoint there is {other}" if other else "there is no valid one there"
                raise CheckpointError(f"{str(path)!r} cannot be resumed from: {reason}; {instead}")
        if path is not None:
            self._check_settings(path)
        return path, flaws

    def _check_settings(self, folder: Path) -> None:
        content = read_content(folder)
        if content is None:
            logger.warning(
                "%s was not written by StarFTTrainer, so it is unknown whether its run had the same settings.", folder
            )
            return
        if content.get("save_only_model"):
            raise CheckpointError(
                f"{folder} was written with save_only_model=True, so it has no state of the optimizer to resume with; "
                "pass it as `model` to start a new run from its weights"
            )
        found = list(differences(content["identity"], self.run_settings))
        if found and not self.args.ignore_mismatched_settings:
            raise CheckpointError(
                f"{folder} was written by another run: {'; '.join(found)}. Use the settings it had, choose another "
                "output_dir to start anew, or set ignore_mismatched_settings=True to resume anyway"
            )
        if found:
            logger.warning("Resuming from %s, which was written by another run: %s.", folder, "; ".join(found))

    # Writing

    def write(
        self, folder: Path, save: Callable[[], None], state: TrainerState, more: Callable[[Path], dict[str, Any]]
    ) -> None:
        """Write a checkpoint; called in all processes.

        Args:
            folder: the checkpoint.
            save: `Trainer`'s own saving, which also publishes and removes checkpoints: both are postponed.
            state: of the trainer.
            more: writes what else belongs into the folder; returns what else to keep, for JSON.

        Raises:
            CheckpointError: if it cannot be written; nothing of it is left then.
        """
        writes = self.args.should_save
        with marked_incomplete(folder) if writes else nullcontext():
            self._wait()
            with self._postponing():
                save()
            content = more(folder)
            self._wait()
            if writes:
                # They were saved without their limit.
                torch.save(self.args, folder / TRAINING_ARGS_NAME)
                settings = {"step": state.global_step, "identity": self.run_settings}
                mark_complete(folder, {**settings, **content, "save_only_model": self.args.save_only_model})
            # A process that ends takes the others down, so none may end before the checkpoint is valid.
            self._wait()
        for action in self._pop_postponed():
            action()
        if writes:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=state.best_model_checkpoint,
                use_mtime=True,
            )

    def once_valid(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do something with a checkpoint now, or once the one that is being written is valid."""
        if self._postponed is None:
            action(*arguments)
        else:
            self._postponed.append(partial(action, *arguments))

    @contextmanager
    def _postponing(self) -> Iterator[None]:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._postponed = []
        try:
            yield
        except BaseException:
            self._postponed = None
            raise
        finally:
            self.args.save_total_limit = limit

    def _pop_postponed(self) -> list[Callable[[], None]]:
        postponed, self._postponed = self._postponed or [], None
        return postponed

    def _wait(self) -> None:
        all_processes_agree(True, self.args.device)
