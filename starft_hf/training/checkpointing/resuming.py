"""What a resumed run needs of its checkpoint beyond what `Trainer` loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from starft_hf.training.callbacks import ResumingCallback
from starft_hf.training.checkpointing.files import STATE_FILE, CheckpointError, name_of, read_content
from starft_hf.training.measurements import Measurements
from starft_hf.training.step import RunningLosses
from starft_hf.utils.untrusted import read_json


@dataclass(frozen=True)
class ResumeState:
    """What a checkpoint holds beyond what `Trainer` writes: what callbacks keep, running means, and measurements."""

    args: Any
    state: TrainerState
    model: nn.Module
    callbacks: Sequence[ResumingCallback]
    losses: RunningLosses
    measured: Measurements

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what callbacks keep into a checkpoint; returns the rest, for JSON."""
        for callback in self.callbacks:
            callback.save_to(folder, self.args, self.state, self.model)
        return {"losses": self.losses.state(), **self.measured.state(self.model)}

    def load(self, checkpoint: str | PathLike[str]) -> None:
        """Continue from a checkpoint, which the model was loaded from."""
        for callback in self.callbacks:
            callback.resume_from(checkpoint)
        content = read_content(Path(checkpoint)) or {}
        self.losses.restore(content.get("losses"), self.args.device)
        self.measured.resume(content, self.model)


class ResumeCheck(ResumingCallback):
    """Checks that a run continues from the whole of its checkpoint, and finds the best one of its output folder.

    `Trainer` starts from the beginning, or with other random numbers, if a file disappears after it was verified. And
    it looks for the best checkpoint where that was written, which may be another folder by now.
    """

    def __init__(self) -> None:
        self._checkpoint: Path | None = None
        self._files: list[str] = []
        self._step = 0

    def resume_from(self, checkpoint: str | PathLike[str]) -> None:
        self._checkpoint = Path(checkpoint)
        content = read_content(self._checkpoint) or {"files": {}, "step": 0}
        self._files, self._step = list(content["files"]), content["step"]

    def save_to(self, folder: Path, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Nothing: a checkpoint is checked by its own list."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._checkpoint is None:
            return
        if state.global_step < self._step:
            raise CheckpointError(f"{self._checkpoint} lost its state while it was loaded; {_ADVICE}")
        self._check_files()
        state.best_model_checkpoint = self._best(args)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._checkpoint is not None:
            # By now everything has been loaded.
            self._check_files()
            self._checkpoint = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # A run that resumes at its end takes no step.
        self._checkpoint = None

    def _check_files(self) -> None:
        assert self._checkpoint is not None
        missing = [name for name in self._files if not (self._checkpoint / name).is_file()]
        if missing:
            raise CheckpointError(f"{self._checkpoint} lost {missing[0]} while it was loaded; {_ADVICE}")

    def _best(self, args: TrainingArguments) -> str | None:
        assert self._checkpoint is not None
        saved = read_json(self._checkpoint / STATE_FILE)["best_model_checkpoint"]
        if saved is None:
            return None
        if Path(saved).is_dir():
            return str(saved)
        name = name_of(saved)
        for folder in (Path(str(args.output_dir)), self._checkpoint.parent):
            if (folder / name).is_dir():
                return str(folder / name)
        if args.load_best_model_at_end:
            raise CheckpointError(
                f"the best checkpoint so far, {name}, is neither in {args.output_dir} nor beside {self._checkpoint}, "
                "so it could not be loaded at the end; put it back, or set load_best_model_at_end=False"
            )
        return None


_ADVICE = "another run may have removed it. Resume from a checkpoint that nothing else writes to"
