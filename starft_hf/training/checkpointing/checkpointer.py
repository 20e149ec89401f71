"""Finding, writing and reading the checkpoints of a run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import logging

from starft_hf.training.checkpointing.files import (
    STATE_FILE,
    CheckpointError,
    Flaw,
    flaw_of,
    last_valid_checkpoint,
    mark_complete,
    marked_incomplete,
    name_of,
    read_content,
    remove_from_rotation,
    remove_left,
    remove_oldest,
    rotate,
)
from starft_hf.training.checkpointing.lock import exclusive
from starft_hf.training.checkpointing.publishing import remove_copies
from starft_hf.training.checkpointing.run_settings import differences
from starft_hf.utils.collectives import all_processes_agree, rank, run_on_main_process
from starft_hf.utils.files import expanded


logger = logging.get_logger(__name__)


class Checkpointer:
    """The checkpoints of a run, such that there is a valid one at every moment.

    A checkpoint is valid once all of it is on the disk. Only then is it published, and are older ones removed.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Any] | None = None
        self._flaws: Sequence[Flaw] = ()
        # Of output_dir, if that is where a run resumes from.
        self._last: Path | None = None
        # Warnings about where the next training resumes from, which may be looked for before it.
        self._warned: set[str] = set()
        self._postponed: list[Callable[[], None]] | None = None

    # Finding

    def start(self, args: Any, run_settings: Callable[[], dict[str, Any]]) -> None:
        """Compute the run settings of a training, before it changes the weights that are part of them."""
        self._settings = run_settings() if args.should_save and args.save_strategy != "no" else None

    @contextmanager
    def exclusive(self, args: Any) -> Iterator[None]:
        """Let no other run write checkpoints to `output_dir` until exit; in all processes.

        Raises:
            CheckpointError: if another one does.
        """
        with ExitStack() as stack:
            if args.save_strategy != "no":
                folder = Path(str(args.output_dir))
                run_on_main_process(lambda: stack.enter_context(exclusive(folder)))
            yield

    def find(
        self, args: Any, wanted: str | PathLike[str] | bool | None, run_settings: Callable[[], dict[str, Any]]
    ) -> Path | None:
        """The checkpoint to resume from, as `StarFTTrainer.checkpoint_to_resume` documents; in all processes.

        `run_settings` computes what a resumed run must share with the one that wrote it.
        """
        path, self._flaws = run_on_main_process(lambda: self._find(args, wanted, run_settings))
        self._last = path if wanted is True else None
        for flaw in self._flaws:
            self._warn(f"The checkpoint {flaw} is skipped.")
        if wanted is True and path is None:
            self._warn(
                f"There is no checkpoint to resume from in {args.output_dir}; training starts from the beginning."
            )
        elif self._flaws:
            self._warn(f"Training resumes from {path}.")
        return path

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    def remove_flawed(self, args: Any) -> None:
        """Keep what `find` skipped out of rotation, and remove what a killed run would have; in all processes."""
        self._warned.clear()
        if rank() == 0:
            remove_from_rotation(self._flaws)
            remove_left(Path(str(args.output_dir)))
            remove_copies(Path(str(args.output_dir)))
            if self._last is not None:
                remove_oldest(self._last, args.save_total_limit, _best_of(self._last))
        _wait(args)

    @contextmanager
    def ending(self, args: Any, state: TrainerState) -> Iterator[None]:
        """Keep the best checkpoint alone with `save_total_limit=1`, as `Trainer` does at the end of a run; on exit."""
        with _without_limit(args):
            yield
        if args.should_save and args.save_total_limit == 1 and state.best_model_checkpoint is not None:
            best = Path(str(args.output_dir)) / name_of(state.best_model_checkpoint)
            if best.is_dir():
                remove_oldest(best, 1, keep=[])

    def _find(
        self, args: Any, wanted: str | PathLike[str] | bool | None, run_settings: Callable[[], dict[str, Any]]
    ) -> tuple[Path | None, list[Flaw]]:
        if not wanted:
            return None, []
        path: Path | None
        flaws: list[Flaw] = []
        if wanted is True:
            path, flaws = last_valid_checkpoint(str(args.output_dir))
        else:
            path = expanded(str(wanted))
            reason = flaw_of(path)
            if reason is not None:
                other = last_valid_checkpoint(path.parent)[0]
                instead = f"the last valid checkpoint there is {other}" if other else "there is no valid one there"
                raise CheckpointError(f"{str(path)!r} cannot be resumed from: {reason}; {instead}")
        if path is not None:
            self._settings = self._settings or run_settings()
            self._check_settings(args, path, self._settings)
        return path, flaws

    def _check_settings(self, args: Any, folder: Path, settings: dict[str, Any]) -> None:
        content = read_content(folder)
        if content is None:
            self._warn(
                f"{folder} was not written by StarFTTrainer, so it is unknown whether its run had the same settings."
            )
            return
        if content.get("save_only_model"):
            raise CheckpointError(
                f"{folder} was written with save_only_model=True, so it has no state of the optimizer to resume with; "
                "pass it as `model` to start a new run from its weights"
            )
        found = list(differences(content["identity"], settings))
        if found and not args.ignore_mismatched_settings:
            raise CheckpointError(
                f"{folder} was written by another run: {'; '.join(found)}. Use the settings it had, choose another "
                "output_dir to start anew, or set ignore_mismatched_settings=True to resume anyway"
            )
        if found:
            self._warn(f"Resuming from {folder}, which was written by another run: {'; '.join(found)}.")

    # Writing

    def write(
        self,
        args: Any,
        folder: Path,
        save: Callable[[], None],
        state: TrainerState,
        more: Callable[[Path], dict[str, Any]],
        run_settings: Callable[[], dict[str, Any]],
    ) -> None:
        """Write a checkpoint; called in all processes.

        Args:
            args: the settings of the run.
            folder: the checkpoint.
            save: `Trainer`'s own saving, which also publishes and removes checkpoints: both are postponed.
            state: of the trainer.
            more: writes what else belongs into the folder; returns what else to keep, for JSON.
            run_settings: as in `find`, for a checkpoint that a callback asks for although `save_strategy` is "no".

        Raises:
            CheckpointError: if it cannot be written; nothing of it is left then.
        """
        writes = args.should_save
        try:
            with marked_incomplete(folder) if writes else nullcontext():
                _wait(args)
                self._postponed = []
                with _without_limit(args):
                    save()
                content = more(folder)
                _wait(args)
                if writes:
                    # They were saved without their limit.
                    torch.save(args, folder / TRAINING_ARGS_NAME)
                    self._settings = self._settings or run_settings()
                    settings = {"step": state.global_step, "identity": self._settings}
                    mark_complete(folder, {**settings, **content, "save_only_model": args.save_only_model})
                # A process that ends takes the others down, so none may end before the checkpoint is valid.
                _wait(args)
        finally:
            postponed, self._postponed = self._postponed or [], None
        for action in postponed:
            action()
        if writes:
            best = state.best_model_checkpoint
            rotate(folder, args.save_total_limit, keep=[] if best is None else [name_of(best)])

    def once_valid(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do something with a checkpoint now, or once the one that is being written is valid."""
        if self._postponed is None:
            action(*arguments)
        else:
            self._postponed.append(partial(action, *arguments))


@contextmanager
def _without_limit(args: Any) -> Iterator[None]:
    """Let `Trainer` remove no checkpoints until exit."""
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit


def _best_of(checkpoint: Path) -> list[str]:
    """The name of the best checkpoint so far, if there is one."""
    best = TrainerState.load_from_json(str(checkpoint / STATE_FILE)).best_model_checkpoint
    return [] if best is None else [name_of(best)]


def _wait(args: Any) -> None:
    all_processes_agree(True, args.device)
