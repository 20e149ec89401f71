"""An exponential moving average of the weights, updated while training."""

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
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from starft_hf.hub.classifier import Classifier
from starft_hf.models.heads import HEAD_NAME
from starft_hf.models.modes import unwrapped
from starft_hf.training.callbacks import ResumingCallback
from starft_hf.utils.files import file_in_place_of
from starft_hf.weights.interpolation import difference


logger = logging.get_logger(__name__)

AVERAGE_FILE = "ema.safetensors"
_FORMAT = "starft-average-1"

ModelT = TypeVar("ModelT", bound=nn.Module)
LoadedT = TypeVar("LoadedT", bound=nn.Module | Classifier)


class ExponentialAverageCallback(ResumingCallback):
    """Keeps an exponential average of the trained weights, for `StarFTTrainer` or another `Trainer`.

    The average starts from the initial weights. After every optimizer step it becomes
    `decay * average + (1 - decay) * weights`, so after a short run the initial weights still have the weight
    `decay ** steps`. Frozen weights, and buffers such as running statistics, are not averaged; with
    `freeze_batch_norm`, as by default, those of batch norm do not change.

    Checkpoints contain the average, as `ema.safetensors`, and a resumed run continues it. Under FSDP 2 every process
    keeps the average of its shards.

    ```python
    average = ExponentialAverageCallback(decay=0.999)
    trainer = StarFTTrainer(..., callbacks=[average])
    trainer.train()
    with average.averaged(trainer.model):
        trainer.evaluate()
        trainer.save_model("averaged")
    ```

    Args:
        decay: weight of the previous average at a step, in [0, 1).
        device: where the average is kept, in float32 or wider. None keeps it beside the weights; "cpu" saves memory
            of the accelerator at the cost of a copy of the weights to the CPU at every step.
        restart: start a new average when resuming from a checkpoint without one, instead of raising an error.

    Raises:
        ValueError: if `decay` is outside [0, 1).
    """

    # torch.optim.swa_utils.AveragedModel would copy the whole model in its own dtype, and FSDP 2 forbids such copies.

    def __init__(self, decay: float = 0.999, device: str | torch.device | None = None, restart: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it is the weight of the previous average and must be in [0, 1)")
        self.decay = decay
        self.device = None if device is None else torch.device(device)
        self.restart = restart
        # Of sharded weights, the shards of this process, as DTensors.
        self._averages: dict[str, Tensor] = {}
        self._checkpoint: Path | None = None
        self._saved: Path | None = None
        self._swapped = False

    def apply(self, model: ModelT) -> ModelT:
        """Overwrite weights of `model` with their averages, in the model's dtype; returns `model`.

        Raises RuntimeError before training, and ValueError if the model has or shards other weights.
        """
        for value, average in self._pairs(model):
            value.copy_(average)
        return model

    @contextmanager
    def averaged(self, model: ModelT) -> Iterator[ModelT]:
        """Put the averages into `model`, and on exit the weights it had, which are kept in a copy until then.

        Raises as `apply` does, and RuntimeError if the averages are in a model already.
        """
        if self._swapped:
            raise RuntimeError("the averages are in a model already; exit the other averaged() first")
        kept = [(value, value.clone()) for value, _ in self._pairs(model)]
        self.apply(model)
        self._swapped = True
        try:
            yield model
        finally:
            self._swapped = False
            for value, former in kept:
                value.copy_(former)

    def resume_from(self, checkpoint: str | PathLike[str]) -> None:
        """Load the average from this folder when training begins.

        `StarFTTrainer` calls this. With other trainers, call it to resume from a checkpoint outside of `output_dir`.
        """
        self._checkpoint = Path(checkpoint)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        flat = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
        if flat or any(hasattr(value, "ds_id") for value in model.parameters()):
            kind = "FSDP 1" if flat else "ZeRO 3"
            raise ValueError(
                f"weights sharded by {kind} cannot be averaged; use FSDP 2 (starft accelerate-config fsdp2) or DDP"
            )
        checkpoint, self._checkpoint = self._checkpoint, None
        self._saved = None
        self._averages = {}
        for name, value in unwrapped(model).named_parameters():
            if value.requires_grad:
                dtype = torch.promote_types(value.dtype, torch.float32)
                self._averages[name] = value.detach().to(self.device or value.device, dtype, copy=True)
        if state.global_step == 0:
            return
        checkpoint = checkpoint or _find_checkpoint(args, state)
        if (checkpoint / AVERAGE_FILE).is_file():
            self._restore(checkpoint / AVERAGE_FILE, state.global_step)
        elif self.restart:
            logger.warning("%s has no %s; a new average starts.", checkpoint, AVERAGE_FILE)
        else:
            raise FileNotFoundError(
                f"{str(checkpoint)!r} has no {AVERAGE_FILE}, so its average cannot be resumed; resume from another "
                "checkpoint, or pass restart=True to start a new average"
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._swapped:
            raise RuntimeError("training continues inside averaged(), on the averages; exit it first")
        # Loss scaling in float16 skips steps whose gradients overflow.
        if getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            return
        for value, average in self._pairs(model):
            average.lerp_(value.to(average), 1 - self.decay)

    def on_save(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        folder = _checkpoint_of(args, state)
        # StarFTTrainer has called save_to already, before the checkpoint was complete.
        if self._saved != folder:
            self.save_to(folder, args, state, model)

    def save_to(self, folder: Path, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Write the average into a checkpoint."""
        self._saved = folder
        # All processes gather the shards, even if only one writes.
        averages = {name: _full(value) for name, value in self._averages.items()}
        if args.should_save and not folder.is_dir():
            logger.warning("The average is not saved, because there is no folder %s.", folder)
        elif args.should_save:
            metadata = {"format": "pt", "kind": _FORMAT, "step": str(state.global_step), "decay": repr(self.decay)}
            with file_in_place_of(folder / AVERAGE_FILE) as temporary:
                save_file(averages, temporary, metadata=metadata)

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """What this process holds of each averaged parameter of a model, with its average."""
        if not self._averages:
            raise RuntimeError("there is no average yet; train first, with this callback in the trainer's `callbacks`")
        matching = _matching(model, self._averages, "the average")
        pairs = [(_local(value), _local(average)) for value, average in matching]
        if any(value.shape != average.shape for value, average in pairs):
            raise ValueError(
                f"the {type(model).__name__} is sharded otherwise than the average; apply it to the model that was "
                "trained, or use load_average with a checkpoint"
            )
        return pairs

    def _restore(self, file: Path, step: int) -> None:
        saved, metadata = _load(file)
        if metadata["step"] != str(step):
            raise ValueError(
                f"{str(file)!r} is the average at step {metadata['step']}, but training resumes at step {step}; "
                "resume from the checkpoint it was saved in"
            )
        if metadata["decay"] != repr(self.decay):
            logger.warning("The average had decay %s so far and continues with %s.", metadata["decay"], self.decay)
        found = difference(_shapes(saved), _shapes(self._averages), repr(str(file)), "the weights that are trained")
        if found is not None:
            raise ValueError(f"the average does not belong to this run: {found}")
        for name, average in self._averages.items():
            _copy_full(saved[name], average)


def load_average(model: LoadedT, checkpoint: str | PathLike[str]) -> LoadedT:
    """Overwrite weights of `model`, such as the one in `checkpoint`, with the averages there; returns `model`.

    Args:
        model: a model, or what `load` gives of a checkpoint, whose linear head is overwritten, too. Without one, the
            average of the head of a cross-entropy run is left out, with a warning.
        checkpoint: a folder that `ExponentialAverageCallback` has written.

    Raises:
        FileNotFoundError: if there is no average in the checkpoint.
        ValueError: if it is damaged, or one of the weights is missing in the model or has another shape.
    """
    file = Path(checkpoint) / AVERAGE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{str(checkpoint)!r} has no {AVERAGE_FILE}; ExponentialAverageCallback writes one")
    saved, _ = _load(file)
    plain, head = (model.model, model.head) if isinstance(model, Classifier) else (model, None)
    known = {name for name, _ in unwrapped(plain).named_parameters()}
    of_head = {name: saved.pop(name) for name in [*saved] if f"{HEAD_NAME}." in name and name not in known}
    pairs = _matching(plain, saved, repr(str(file)))
    if head is not None:
        own = {name.rpartition(f"{HEAD_NAME}.")[2]: average for name, average in of_head.items()}
        pairs += _matching(head, own, repr(str(file)))
    elif of_head:
        logger.warning("%s has the average of a linear head, and the model has none; pass load(checkpoint).", file)
    for value, average in pairs:
        _copy_full(average, value)
    return model


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}); choose another checkpoint") from error
    if metadata.get("kind") != _FORMAT:
        raise ValueError(f"{str(file)!r} was not written by ExponentialAverageCallback; choose another checkpoint")
    return tensors, metadata


def _checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _find_checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The checkpoint in `args.output_dir` that a run resumes from; ValueError if it resumes from elsewhere."""
    folder = _checkpoint_of(args, state)
    file = folder / "trainer_state.json"
    logs = TrainerState.load_from_json(str(file)).log_history if file.is_file() else None
    # As text, since nan is not equal to itself.
    if json.dumps(logs) != json.dumps(state.log_history):
        raise ValueError(
            f"the run resumes at step {state.global_step}, but not from {str(folder)!r}, so it is unknown where its "
            "average is; call resume_from(checkpoint) of the callback before training"
        )
    return folder


def _matching(model: nn.Module, averages: Mapping[str, Tensor], where: str) -> list[tuple[Tensor, Tensor]]:
    """The averaged parameters of a model, which must have the same shapes, with their averages."""
    parameters = {name: value for name, value in unwrapped(model).named_parameters() if name in averages}
    found = difference(_shapes(averages), _shapes(parameters), where, f"the {type(model).__name__}")
    if found is not None:
        raise ValueError(f"the average does not belong to this model: {found}")
    return [(parameters[name], average) for name, average in averages.items()]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    # FSDP 2 does not shard scalars: there they are vectors of length 1, which count as the same.
    return {name: () if value.numel() == 1 else tuple(value.shape) for name, value in tensors.items()}


def _local(value: Tensor) -> Tensor:
    """The shard of a weight that this process holds, in the same memory."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def _full(average: Tensor) -> Tensor:
    """An average on the CPU, gathered from the shards of all processes."""
    if isinstance(average, DTensor):
        on_mesh: Any = average.to(average.device_mesh.device_type)
        average = on_mesh.full_tensor()
    return average.cpu().reshape(() if average.numel() == 1 else average.shape).contiguous()


def _copy_full(source: Tensor, target: Tensor) -> None:
    """Copy a tensor into one of which this process may hold a shard."""
    source = source.reshape(target.shape)
    if isinstance(target, DTensor):
        mesh = target.device_mesh
        source = distribute_tensor(source.to(mesh.device_type), mesh, target.placements)
    _local(target).copy_(_local(source))
