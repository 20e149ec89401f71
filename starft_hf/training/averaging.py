"""An exponential average of the weights, kept while training."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from starft_hf.models.encoder import unwrapped
from starft_hf.training.callbacks import ResumingCallback
from starft_hf.utils.files import file_in_place_of
from starft_hf.weights.interpolation import difference


logger = logging.get_logger(__name__)

AVERAGE_FILE = "ema.safetensors"
_FORMAT = "starft-average-1"

ModelT = TypeVar("ModelT", bound=nn.Module)


class ExponentialAverageCallback(ResumingCallback):
    """Keeps an exponential average of the weights that are trained, for `StarFTTrainer` or another `Trainer`.

    The average begins as the weights do. After every step of the optimiser it becomes
    `decay * average + (1 - decay) * weights`. Short runs therefore keep a share of the weights they began with, which
    is `decay ** steps`. Weights that training leaves alone, and buffers such as running statistics, are not averaged.

    Every checkpoint gets the average beside the weights, as `ema.safetensors`, and a resumed run goes on with it.
    Several processes keep the same average under DDP, and each the average of its shards under FSDP 2.

    ```python
    average = ExponentialAverageCallback(decay=0.999)
    trainer = StarFTTrainer(..., callbacks=[average])
    trainer.train()
    with average.averaged(trainer.model):
        trainer.evaluate()
        trainer.save_model("averaged")
    ```

    Args:
        decay: share of the former average at a step, from 0 up to but not including 1.
        device: where the average is kept, in float32 or wider. None keeps it beside the weights; "cpu" spares the
            accelerator its memory and costs a copy of the weights to the CPU at every step.
        restart: whether a run that resumes from a checkpoint without an average begins a new one. Otherwise that is an
            error.

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """

    def __init__(self, decay: float = 0.999, device: str | torch.device | None = None, restart: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay is {decay}; it is the share of the former average at a step, from 0 up to but not including 1"
            )
        self.decay = decay
        self.device = None if device is None else torch.device(device)
        self.restart = restart
        self._averages: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._checkpoint: Path | None = None
        self._saved: tuple[Path, int] | None = None
        self._swapped = False

    def apply(self, model: ModelT) -> ModelT:
        """Overwrite weights of `model` with their averages, in the model's dtype; returns `model`.

        Raises:
            RuntimeError: if there is no average yet.
            ValueError: if the model lacks one of the weights, has it in another shape or is sharded otherwise.
        """
        if not self._averages:
            raise RuntimeError("there is no average yet; train first, with this callback in the trainer's `callbacks`")
        parameters = _matching(model, self._shapes, "the average")
        for name, average in self._averages.items():
            if _local(parameters[name]).shape != average.shape:
                raise ValueError(
                    f"this process holds another part of {name!r} in the average than in the {type(model).__name__}; "
                    "apply it to the model that was trained, or use load_average with a checkpoint"
                )
        with torch.no_grad():
            for name, average in self._averages.items():
                _local(parameters[name]).copy_(average)
        return model

    @contextmanager
    def averaged(self, model: ModelT) -> Iterator[ModelT]:
        """Put the averages into `model`, and on leaving the very weights it had.

        These are kept for as long, in one more copy of the trained weights.

        Raises:
            RuntimeError: as `apply`, or if the averages are in a model already.
            ValueError: as `apply`.
        """
        if self._swapped:
            raise RuntimeError("the averages are in a model already; leave the other averaged() first")
        parameters = _parameters(model)
        kept = {name: _local(parameters[name]).clone() for name in self._averages if name in parameters}
        self.apply(model)
        self._swapped = True
        try:
            yield model
        finally:
            self._swapped = False
            with torch.no_grad():
                for name, value in kept.items():
                    _local(parameters[name]).copy_(value)

    def resume_from(self, checkpoint: str | PathLike[str]) -> None:
        """Take the average from this folder when training begins.

        `StarFTTrainer` sees to it. Other trainers do not say which checkpoint they resume from; then it is looked for
        in their `output_dir`, and this is for checkpoints from elsewhere.
        """
        self._checkpoint = Path(checkpoint)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        _check_whole(model)
        trained = {name: value for name, value in _parameters(model).items() if value.requires_grad}
        checkpoint, self._checkpoint = self._checkpoint, None
        self._saved = None
        with torch.no_grad():
            self._averages = {name: self._started(value) for name, value in trained.items()}
            self._shapes = _shapes(trained)
            if state.global_step == 0:
                return
            checkpoint = checkpoint or _find_checkpoint(args, state)
            if (checkpoint / AVERAGE_FILE).is_file():
                self._restore(checkpoint / AVERAGE_FILE, trained, state.global_step)
            elif self.restart:
                logger.warning("%s has no %s; a new average begins.", checkpoint, AVERAGE_FILE)
            else:
                raise FileNotFoundError(
                    f"{str(checkpoint)!r} has no {AVERAGE_FILE}: the run that wrote it kept no average, or ended "
                    "while writing. Resume from another checkpoint, or pass restart=True to begin a new average there."
                )

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        if self._swapped:
            raise RuntimeError("training goes on inside averaged(), on the averages; leave it first")
        # Loss scaling in float16 skips steps whose gradients overflow.
        if getattr(optimizer, "step_was_skipped", False):
            return
        parameters = _parameters(model)
        with torch.no_grad():
            for name, average in self._averages.items():
                average.lerp_(_local(parameters[name]).to(average), 1 - self.decay)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        # StarFTTrainer has asked for it already, before the checkpoint was complete.
        if self._saved != (folder, state.global_step):
            self.save_to(folder, args, state, model)

    def save_to(self, folder: Path, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Write the average into a checkpoint."""
        self._saved = (folder, state.global_step)
        parameters = _parameters(model)
        # Shards are put together by all processes, even if only one writes.
        averages = {name: _whole(value, parameters[name]) for name, value in self._averages.items()}
        if not args.should_save:
            return
        if not folder.is_dir():
            logger.warning("There is no %s, so the average is not saved beside it.", folder)
            return
        metadata = {"format": "pt", "kind": _FORMAT, "step": str(state.global_step), "decay": repr(self.decay)}
        with file_in_place_of(folder / AVERAGE_FILE) as temporary:
            save_file(averages, temporary, metadata=metadata)

    def _started(self, value: nn.Parameter) -> Tensor:
        local = _local(value)
        return local.to(self.device or local.device, torch.promote_types(local.dtype, torch.float32), copy=True)

    def _restore(self, file: Path, trained: Mapping[str, nn.Parameter], step: int) -> None:
        saved, metadata = _load(file)
        if metadata["step"] != str(step):
            raise ValueError(
                f"{str(file)!r} is the average at step {metadata['step']}, but training resumes at step {step}; "
                "resume from the folder it belongs to"
            )
        if metadata["decay"] != repr(self.decay):
            logger.warning(
                "The average so far was kept with decay %s, it goes on with %s.", metadata["decay"], self.decay
            )
        found = difference(_shapes(saved), self._shapes, repr(str(file)), "the weights that are trained")
        if found is not None:
            raise ValueError(f"the average does not belong to this run: {found}")
        for name, average in self._averages.items():
            average.copy_(_share(saved[name], trained[name]))


def load_average(model: ModelT, checkpoint: str | PathLike[str]) -> ModelT:
    """Overwrite weights of `model` with the averages beside a checkpoint; returns `model`.

    Args:
        model: a model of the architecture that was trained, such as the one saved in the checkpoint.
        checkpoint: a folder that a trainer with `ExponentialAverageCallback` has written.

    Raises:
        FileNotFoundError: if there is no average in the folder.
        ValueError: if it is damaged, or the model lacks one of the weights or has it in another shape.
    """
    file = Path(checkpoint) / AVERAGE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{str(checkpoint)!r} has no {AVERAGE_FILE}; ExponentialAverageCallback writes one")
    saved, _ = _load(file)
    parameters = _matching(model, _shapes(saved), repr(str(file)))
    with torch.no_grad():
        for name, average in saved.items():
            _local(parameters[name]).copy_(_share(average, parameters[name]))
    return model


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}); take another checkpoint") from error
    if metadata.get("kind") != _FORMAT:
        raise ValueError(f"{str(file)!r} was not written by ExponentialAverageCallback; take another checkpoint")
    return tensors, metadata


def _find_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The checkpoint of `args.output_dir` that a run resumes from, if it is one of that folder."""
    folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    try:
        logs = TrainerState.load_from_json(str(folder / "trainer_state.json")).log_history
    except OSError:
        logs = None
    # As text, since nan is not equal to itself.
    if json.dumps(logs) != json.dumps(state.log_history):
        raise ValueError(
            f"the run resumes at step {state.global_step}, but not from {str(folder)!r}, so it is unknown where its "
            "average is; call resume_from(checkpoint) of the callback before training"
        )
    return folder


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(unwrapped(model).named_parameters())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: _shape(value) for name, value in tensors.items()}


def _shape(value: Tensor) -> tuple[int, ...]:
    # FSDP 2 shards no scalars: there they are vectors of length 1, and are the same all the same.
    return () if value.numel() == 1 else tuple(value.shape)


def _matching(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, nn.Parameter]:
    """The model's parameters, among which there is one of the right shape for each average."""
    parameters = _parameters(model)
    candidates = _shapes({name: value for name, value in parameters.items() if name in shapes})
    found = difference(shapes, candidates, where, f"the {type(model).__name__}")
    if found is not None:
        raise ValueError(f"the average does not belong to this model: {found}")
    return parameters


def _local(value: Tensor) -> Tensor:
    """The part of a weight that this process holds."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(average: Tensor, parameter: nn.Parameter) -> Tensor:
    """An average on the CPU, put together from the shards of all processes."""
    if isinstance(parameter, DTensor):
        average = DTensor.from_local(
            average.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        ).full_tensor()
    return average.cpu().reshape(_shape(average)).contiguous()


def _share(average: Tensor, parameter: nn.Parameter) -> Tensor:
    """What this process holds of a whole average."""
    average = average.reshape(parameter.shape)
    if isinstance(parameter, DTensor):
        whole = average.to(parameter.device)
        return _local(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
    return average


def _check_whole(model: nn.Module) -> None:
    flat = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    if flat or any(hasattr(value, "ds_id") for value in model.parameters()):
        raise ValueError(
            f"ExponentialAverageCallback cannot average weights that are sharded by {'FSDP 1' if flat else 'ZeRO 3'}; "
            "use FSDP 2 (python -m starft_hf.cli.accelerate_configs fsdp2) or DDP"
        )
