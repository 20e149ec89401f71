"""Folders of `save_pretrained`, read and written tensor by tensor."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import logging

from starft_hf.hub.record import MULTI_LABEL, RECORD_FILE, RunRecord
from starft_hf.models.heads import HEAD_FILE, HEAD_NAME, load_head, save_head
from starft_hf.models.loading import check_config
from starft_hf.models.own_code import classes_are_known
from starft_hf.utils.files import folder_in_place_of, leads_out, read_text
from starft_hf.utils.untrusted import read_json_object
from starft_hf.weights.interpolation import difference, traits_of, warn_of_statistics
from starft_hf.weights.records import combined_record


logger = logging.get_logger(__name__)

Folder = str | os.PathLike[str]

# Older versions of transformers saved positions, which are not weights.
_POSITIONS = ".position_ids"
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Other dtypes, such as packed or 8-bit floating-point weights, cannot be averaged number by number.
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}

# Numbers that are combined at once. Up to here torch uses one thread, since waking others would take longer than the
# sum, and temporary tensors are too small to leave gaps in memory between the results.
_PIECE = 2**15

# What repairs several errors.
_SAVED = "pass a folder that save_pretrained has written"
_AGAIN = "copy or download it again"
_UNQUANTIZED = "pass the checkpoints from before quantization"

# Configurations and processors consist of these files.
_COPIED = {".json", ".txt", ".model", ".jinja", ".py"}
# These describe the run that wrote the checkpoint, its results, or weights that are not copied.
_EXCLUDED = (
    RECORD_FILE,
    "report.json",
    "tuning.json",
    "starft_checkpoint.json",
    "trainer_state.json",
    "_results.json",
    ".index.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A model in a folder of `save_pretrained`: its tensors, on the meta device, and their files by name.

    `class_names` are those of its classification head, if there is one; checkpoints of equal `traits` can be averaged.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    files: Mapping[str, Path]
    config: Any
    head: nn.Linear | None
    class_names: Sequence[str] | None
    record: RunRecord | None

    @classmethod
    def open(cls, folder: Folder) -> "Checkpoint":
        """The checkpoint in `folder`; FileNotFoundError or ValueError if there is none that can be averaged."""
        path, name = Path(folder), repr(str(folder))
        if not path.is_dir():
            raise FileNotFoundError(f"{name} is not a folder; download a Hub model with snapshot_download first")
        if (path / "adapter_config.json").exists():
            raise ValueError(
                f"{name} holds an adapter, and averaging the factors of adapters does not average models; merge it "
                "into its model first, with StarFTTrainer.merge_and_save or PeftModel.merge_and_unload"
            )
        if not (path / "config.json").is_file() or leads_out(path / "config.json"):
            raise FileNotFoundError(f"{name} has no config.json of its own; {_SAVED}")
        check_config(path)
        content = read_json_object(path / "config.json", {})
        # Without running code: that of a class of its own is read as it is.
        config: Any = AutoConfig.from_pretrained(path) if classes_are_known(content) else content
        if content.get("quantization_config") is not None:
            raise ValueError(f"{name} holds quantized weights, which cannot be averaged; {_UNQUANTIZED}")
        headers = {file: _read_header(file, expected) for file, expected in _weight_files(path).items()}
        tensors = {name: value for header in headers.values() for name, value in header.items()}
        files = {name: file for file, header in headers.items() for name in header}
        head, class_names = load_head(path) if (path / HEAD_FILE).is_file() else (None, None)
        record = RunRecord.load(path) if (path / RECORD_FILE).is_file() else None
        return cls(path, tensors, files, config, head, class_names, record)

    @property
    def traits(self) -> Mapping[str, Any]:
        """What must be equal in two checkpoints for them to be averaged."""
        head = {} if self.head is None else self.head.state_dict(prefix=f"{HEAD_NAME}.")
        traits = traits_of({**self.tensors, **head}, self.config)
        return {**traits, "class names of the head": tuple(self.class_names or ())}

    def with_head(self, head: nn.Linear | None, class_names: Sequence[str] | None) -> "Checkpoint":
        """The same checkpoint with another classification head, or None without one."""
        return replace(self, head=head, class_names=class_names)

    def read(self, name: str) -> Tensor:
        """A tensor, memory-mapped: what was read of it leaves memory with the last reference."""
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)

    def split(self, max_shard_size: int | str) -> StateDictSplit:
        """Which tensors are written to which file; ValueError if `max_shard_size` is not a size."""
        return split_torch_state_dict_into_shards(dict(self.tensors), max_shard_size=max_shard_size)


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ValueError with the first difference if checkpoints are not of one architecture, or of one kind of run."""
    first, *others = checkpoints
    several = {one.record.multi_label: one.folder for one in checkpoints if one.record is not None}
    if len(several) > 1:
        raise ValueError(
            f"{str(several[True])!r} was trained with base_loss={MULTI_LABEL!r}, for images of any number of classes, "
            f"and {str(several[False])!r} for images of one each; average models of one kind"
        )
    for other in others:
        found = difference(first.traits, other.traits, repr(str(first.folder)), repr(str(other.folder)))
        if found is not None:
            raise ValueError(f"the checkpoints differ: {found}; only models of one architecture can be averaged")


def write_checkpoint(
    output: Folder,
    checkpoints: Sequence[Checkpoint],
    combine: Callable[[Sequence[Tensor]], Tensor],
    max_shard_size: int | str,
) -> Path:
    """Write what checkpoints of one architecture combine to, atomically, into a new or empty folder.

    Names, dtypes, configuration and processor are those of the first; `combined_record` says what is recorded.
    `combine` is called with the same piece of a tensor in each of the checkpoints, so it must work element by element.
    """
    first = checkpoints[0]
    split = first.split(max_shard_size)

    def combined(name: str) -> Tensor:
        result = torch.empty_like(first.tensors[name], device="cpu")
        parts = [checkpoint.read(name).view(-1).split(_PIECE) for checkpoint in checkpoints]
        for target, *pieces in zip(result.view(-1).split(_PIECE), *parts, strict=True):
            target.copy_(combine(pieces))
        return result

    warn_of_statistics(first.tensors, lambda name: [checkpoint.read(name) for checkpoint in checkpoints])
    with folder_in_place_of(output) as folder:
        _copy_settings(first.folder, folder)
        record = combined_record([checkpoint.record for checkpoint in checkpoints if checkpoint.record is not None])
        if record is not None:
            record.save(folder)
        # Not with huggingface_hub.save_torch_state_dict, which needs all shards in memory at once.
        for file_name, names in split.filename_to_tensors.items():
            save_file({name: combined(name) for name in names}, folder / file_name, metadata={"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if first.class_names is not None:
            heads = [checkpoint.head.state_dict() for checkpoint in checkpoints if checkpoint.head is not None]
            head = {key: combine([head[key] for head in heads]).to(value.dtype) for key, value in heads[0].items()}
            save_head(head, first.class_names, folder)
    return Path(output)


def is_pickled(folder: Path) -> bool:
    """Whether the only weights in a folder are pickles."""
    return not any((folder / name).is_file() for name in (_WHOLE, _INDEX)) and any(folder.glob("pytorch_model*.bin"))


def copy_beside(source: Path, target: Path) -> None:
    """Copy what lies beside the weights of a checkpoint, its record and head among them, and is not there yet."""
    _copy_settings(source, target)
    for name in (RECORD_FILE, HEAD_FILE):
        if (source / name).is_file() and not leads_out(source / name):
            shutil.copyfile(source / name, target / name)


def _copy_settings(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if not file.is_file() or file.suffix not in _COPIED or file.name.endswith(_EXCLUDED):
            continue
        if leads_out(file):
            logger.warning_once("%s is a link to %s, outside of its folder, and is not copied.", file, file.resolve())
        elif not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """The files of a model's weights, and the tensors that the index, if there is one, places in each."""
    if (folder / _WHOLE).is_file():
        return {folder / _WHOLE: []}
    if not (folder / _INDEX).is_file():
        pickled = next(folder.glob("pytorch_model*.bin"), None)
        if pickled is not None:
            raise ValueError(
                f"{str(folder)!r} has its weights in {pickled.name}, a pickle, and opening one runs whatever code "
                "is in it; if you trust it, load the model once and save it again with save_pretrained"
            )
        raise FileNotFoundError(f"{str(folder)!r} has neither {_WHOLE} nor {_INDEX}; {_SAVED}")
    shards: dict[Path, list[str]] = {}
    try:
        for name, file_name in json.loads(read_text(folder / _INDEX))["weight_map"].items():
            if not isinstance(file_name, str):
                raise TypeError(f"the file of {name!r} is {file_name!r}")
            shards.setdefault(folder / file_name, []).append(name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(folder / _INDEX)!r} cannot be read ({error!r}); {_AGAIN}") from error
    for path in shards:
        if path.parent != folder:
            raise ValueError(f"{_INDEX} in {str(folder)!r} names {str(path)!r}, which is outside of the folder")
        if not path.is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no {path.name}, named in {_INDEX}; {_AGAIN}")
    return shards


def _read_header(file: Path, expected: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a file, on the meta device."""
    tensors = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in (name for name in opened.keys() if not name.endswith(_POSITIONS)):  # noqa: SIM118
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in _DTYPES:
                    raise ValueError(f"{name!r} in {str(file)!r} is {dtype}, which cannot be averaged; {_UNQUANTIZED}")
                tensors[name] = opened.get_tensor(name).to("meta")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read ({error}); {_AGAIN}") from error
    for name in expected:
        if name not in tensors and not name.endswith(_POSITIONS):
            raise ValueError(f"{str(file)!r} has no {name!r}, which {_INDEX} places there; {_AGAIN}")
    return tensors
