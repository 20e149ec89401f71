"""What a run saves: the model as it was given, and its head and temperature in files of their own."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, logging

from starft_hf.models.adapters import base_model_of, is_adapted, merge_and_save, save_temperature, saved_temperature
from starft_hf.models.fsdp import with_scalars
from starft_hf.models.heads import HEAD_FILE, HEAD_NAME, load_head, save_head
from starft_hf.models.modes import floating_dtype
from starft_hf.models.own_code import save_code_of_towers
from starft_hf.training.checkpointing.files import CheckpointError
from starft_hf.utils.files import apply_umask, check_writable


logger = logging.get_logger(__name__)


def save_weights(
    write: Callable[[str, dict[str, Tensor]], None],
    folder: str,
    model: nn.Module,
    state_dict: dict[str, Tensor] | None,
    class_names: Sequence[str] | None,
    scalars: Sequence[str],
) -> None:
    """Save a model, possibly adapted, and its linear head over `class_names`; None for runs without a head.

    `write` saves a state dict without the head; `scalars` are parameters that FSDP made vectors of length 1.
    """
    state_dict = with_scalars(model.state_dict() if state_dict is None else state_dict, scalars)
    # A model may still carry the head of another run, which is not saved.
    head = {name: state_dict.pop(key) for name in ("weight", "bias") if (key := f"{HEAD_NAME}.{name}") in state_dict}
    save_code_of_towers(base_model_of(model), folder)
    _remove(Path(folder), _of_others(Path(folder), model, class_names is not None))
    write(folder, state_dict)
    apply_umask(Path(folder).glob("*.safetensors"))
    if class_names is not None:
        save_head(head, class_names, folder)
    if is_adapted(model):
        save_temperature(model, folder, state_dict)


def save_merged(model: nn.Module, processor: Any, folder: Path, head: nn.Linear | None, class_names: Any) -> None:
    """Save a model with its adapter merged in, and its linear head, if it has one, over `class_names`.

    Raises:
        FileExistsError: if the folder has an adapter, which would be applied once more, or is that of the base model.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise FileExistsError(
            f"{str(folder)!r} holds an adapter, which would be applied to the merged model once more; choose another "
            "folder"
        )
    if _is_of_base(model, folder):
        raise FileExistsError(
            f"{str(folder)!r} holds the base model of the adapter, which would be overwritten; choose another folder"
        )
    _remove(folder, [HEAD_FILE] if head is None else [])
    merge_and_save(model, processor, folder)
    if head is not None:
        save_head(head.state_dict(), class_names or (), folder)


def check_output_dir(args: TrainingArguments, model: Any, peft_config: Any) -> None:
    """Check that a run that saves can write to its folder, and that this is not the one of an adapter's base model."""
    folder = Path(str(args.output_dir))
    if args.save_strategy != "no" and args.should_save:
        check_writable(folder, "output_dir")
    if peft_config is not None and isinstance(model, (str, PathLike)) and Path(model).resolve() == folder.resolve():
        raise ValueError(
            f"output_dir={str(folder)!r} is the folder of the model, and the folder of an adapter and its base model "
            "can neither be trained nor resumed; choose another output_dir"
        )


def _of_others(folder: Path, model: nn.Module, has_head: bool) -> list[str]:
    """What the model of another run may have left in a folder and this one does not replace, as patterns of names."""
    patterns = [] if has_head else [HEAD_FILE]
    if not is_adapted(model):
        return [*patterns, ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    if not _is_of_base(model, folder):
        patterns += [CONFIG_NAME, "model*.safetensors", SAFE_WEIGHTS_INDEX_NAME]
    return patterns


def _remove(folder: Path, patterns: Sequence[str]) -> None:
    """Remove what would be loaded, and published, with the weights of this run."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        logger.warning("%s is removed: it belongs to the model of another run.", path)
        path.unlink()


def _is_of_base(model: nn.Module, folder: Path) -> bool:
    """Whether a folder is that of the base model of an adapter."""
    configurations = getattr(model, "peft_config", None) or {}
    bases = [each.base_model_name_or_path for each in configurations.values()]
    return any(base is not None and Path(base).resolve() == folder.resolve() for base in bases)


def restore_weights(model: nn.Module, head: nn.Linear | None, folder: str | PathLike[str] | None) -> None:
    """Load what `Trainer` does not of the folder of a checkpoint: a head, and weights that are saved by other names.

    Transformers saves some towers by the names of former versions, and `Trainer` skips what has no place by its name.
    """
    if folder is None:
        return
    if any(isinstance(value, DTensor) for value in model.parameters()):
        # Of sharded weights, a checkpoint holds all, as they are named; of a model with an adapter only PEFT's own.
        if is_adapted(model):
            tensors: dict[str, Any] = dict(saved_temperature(model, folder))
            if head is not None:
                tensors |= {f"{HEAD_NAME}.{name}": value for name, value in load_head(folder)[0].state_dict().items()}
            set_model_state_dict(model, tensors, options=StateDictOptions(full_state_dict=True, strict=False))
        return
    if head is not None:
        saved: Any = load_head(folder)[0]
        head.load_state_dict(saved.state_dict())
    if not isinstance(model, PreTrainedModel) or _saved_names(folder) <= model.state_dict().keys():
        return
    logger.warning("The weights reported as missing are loaded by the names under which transformers saves them.")
    weights = type(model).from_pretrained(folder, dtype=floating_dtype(model)).state_dict()
    missing = [name for name in model.load_state_dict(weights, strict=False).missing_keys if HEAD_NAME not in name]
    if missing:
        raise CheckpointError(f"{str(folder)!r} lacks weights of the {type(model).__name__}, such as {missing[0]!r}")


def _saved_names(folder: str | PathLike[str]) -> set[str]:
    names: set[str] = set()
    for path in Path(folder).glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names
