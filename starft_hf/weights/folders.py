"""Folders of `save_pretrained`, read and written one tensor at a time."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from starft_hf.models.heads import HEAD_FILE, save_head
from starft_hf.utils.files import folder_in_place_of, read_text
from starft_hf.weights.interpolation import computation_of, difference


_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD = "classification_head."

# Anything else, such as packed or 8-bit floating-point weights, cannot be averaged number by number.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Numbers that are combined at once. Up to here torch does not call other threads, which would take longer to meet than
# the sum does, and what is allocated in between is too small to leave gaps between the results.
_PIECE = 2**15
# Numbers after which the files are opened anew. They are memory-mapped, and what was read stays in memory until then.
_BLOCK = 2**22

# What configurations and processors are made of.
_COPIED = {".json", ".txt", ".model", ".jinja", ".py"}
# These tell of the run that made the checkpoint.
_LEFT = {
    "starft_checkpoint.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "predict_results.json",
}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Attributes:
        file: the file.
        key: its name there.
        shape: its shape.
        dtype: its dtype.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Checkpoint:
    """A model in a folder, of which nothing but names and shapes is in memory.

    Attributes:
        folder: the folder, as `save_pretrained` or `StarFTTrainer` writes it.
        entries: the tensors of the model by name, and those of a classification head beside it.
        class_names: classes of that head, or None without one.
        computation: settings with which the same weights would compute something else.
    """

    folder: Path
    entries: Mapping[str, Entry]
    class_names: tuple[str, ...] | None
    computation: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Checkpoint":
        """The checkpoint in `folder`.

        Raises:
            FileNotFoundError: if there is no such folder, or no configuration or weights in it.
            ValueError: if it is an adapter, its weights are pickled, quantised or damaged, or tensors are missing.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(
                f"{str(folder)!r} is no folder; a model on the Hub has to be downloaded first, with "
                "huggingface_hub.snapshot_download"
            )
        if (path / "adapter_config.json").exists():
            raise ValueError(
                f"{str(folder)!r} holds an adapter, whose product with other adapters' is no average of models; merge "
                "it into its model first, with StarFTTrainer.merge_and_save or PeftModel.merge_and_unload"
            )
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} has no config.json, so no model could be loaded from it; pass a folder that "
                "save_pretrained has written"
            )
        config = AutoConfig.from_pretrained(path)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(
                f"{str(folder)!r} holds quantised weights, which cannot be averaged; pass the checkpoints from before "
                "quantisation"
            )
        entries: dict[str, Entry] = {}
        for file, keys in _weight_files(path).items():
            entries |= _entries(file, keys)
        class_names = None
        if (path / HEAD_FILE).is_file():
            entries |= {_HEAD + name: entry for name, entry in _entries(path / HEAD_FILE).items()}
            with safe_open(path / HEAD_FILE, framework="pt") as opened:
                class_names = tuple(json.loads(opened.metadata()["class_names"]))
        return cls(path, entries, class_names, computation_of(config))

    def read(self, name: str) -> Tensor:
        """The tensor of that name, memory-mapped."""
        entry = self.entries[name]
        with safe_open(entry.file, framework="pt") as file:
            return file.get_tensor(entry.key)

    def traits(self) -> dict[str, Any]:
        """What has to be the same in two checkpoints for their weights to be averaged."""
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        return {**shapes, "class names of the head": self.class_names, **self.computation}


def open_alike(folders: Sequence[str | os.PathLike[str]]) -> list[Checkpoint]:
    """The checkpoints in `folders`, all of one architecture.

    Raises:
        FileNotFoundError: as `Checkpoint.open`.
        ValueError: as `Checkpoint.open`, or if two of them differ, naming the first difference.
    """
    checkpoints = [Checkpoint.open(folder) for folder in folders]
    for other in checkpoints[1:]:
        first = checkpoints[0]
        found = difference(first.traits(), other.traits(), repr(str(first.folder)), repr(str(other.folder)))
        if found is not None:
            raise ValueError(f"the checkpoints differ: {found}; only models of one architecture can be averaged")
    return checkpoints


def split_into_shards(checkpoint: Checkpoint, max_shard_size: int | str) -> StateDictSplit:
    """Which of a model's tensors are written to which file.

    Raises:
        ValueError: if `max_shard_size` is no size.
    """
    sizes = {
        name: torch.empty(entry.shape, dtype=entry.dtype, device="meta")
        for name, entry in checkpoint.entries.items()
        if not name.startswith(_HEAD)
    }
    return split_torch_state_dict_into_shards(sizes, max_shard_size=max_shard_size)


def write_checkpoint(
    output: str | os.PathLike[str],
    checkpoints: Sequence[Checkpoint],
    combine: Callable[[Sequence[Tensor]], Tensor],
    max_shard_size: int | str,
) -> Path:
    """Write what checkpoints of one architecture combine to, at once or not at all; returns the folder.

    Names, dtypes, configuration and processor are those of the first. In memory are one shard and pieces of tensors.

    Args:
        output: the folder to write.
        checkpoints: what is combined.
        combine: from the same piece of a tensor in each of the checkpoints, flat, to that of the result. It is given
            one piece after the other, and must compute every number by itself.
        max_shard_size: weights beyond that many bytes are split over several files; a number, or such as "5GB".

    Raises:
        FileExistsError: if `output` is a file or a folder that is not empty.
        ValueError: if `max_shard_size` is no size.
    """
    first = checkpoints[0]
    split = split_into_shards(first, max_shard_size)

    def combined(name: str) -> Tensor:
        result = torch.empty(first.entries[name].shape, dtype=first.entries[name].dtype)
        numbers = result.view(-1)
        for start in range(0, len(numbers), _BLOCK):
            block = slice(start, start + _BLOCK)
            parts = [checkpoint.read(name).view(-1)[block].split(_PIECE) for checkpoint in checkpoints]
            for target, *pieces in zip(numbers[block].split(_PIECE), *parts, strict=True):
                target.copy_(combine(pieces))
        return result

    with folder_in_place_of(Path(output)) as folder:
        for file in first.folder.iterdir():
            if file.is_file() and file.suffix in _COPIED and file.name not in {*_LEFT, _INDEX}:
                shutil.copyfile(file, folder / file.name)
        for file_name, names in split.filename_to_tensors.items():
            save_file({name: combined(name) for name in names}, folder / file_name, metadata={"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if first.class_names is not None:
            save_head({name: combined(_HEAD + name) for name in ("weight", "bias")}, first.class_names, folder)
    return Path(output)


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The files of a model's weights, and the tensors that each of them has to hold; None for any."""
    if (folder / _WHOLE).is_file():
        return {folder / _WHOLE: None}
    if not (folder / _INDEX).is_file():
        pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        if pickled:
            raise ValueError(
                f"{str(folder)!r} has its weights in {pickled[0]}, a pickle, and opening one runs whatever code is in "
                "it; if you trust it, load the model once and save it again with save_pretrained"
            )
        raise FileNotFoundError(
            f"{str(folder)!r} has neither {_WHOLE} nor {_INDEX}; pass a folder that save_pretrained has written"
        )
    shards: dict[Path, set[str] | None] = {}
    for name, file in _weight_map(folder / _INDEX).items():
        if Path(file).name != file:
            raise ValueError(f"{_INDEX} in {str(folder)!r} names {file!r}, which is outside of the folder")
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{str(folder)!r} lacks {file}, which {_INDEX} names; copy or download it again")
        names = shards.setdefault(folder / file, set())
        assert names is not None
        names.add(name)
    return shards


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(read_text(path))["weight_map"]
        if not all(isinstance(file, str) for file in found.values()):
            raise TypeError("a name of a file is no string")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error!r}); copy or download it again") from error
    return found


def _entries(file: Path, expected: set[str] | None = None) -> dict[str, Entry]:
    entries = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                part = opened.get_slice(key)
                if part.get_dtype() not in _DTYPES:
                    raise ValueError(
                        f"{key!r} in {str(file)!r} is {part.get_dtype()}, which is not averaged number by number; "
                        "pass the checkpoints from before quantisation"
                    )
                entries[key] = Entry(file, key, tuple(part.get_shape()), _DTYPES[part.get_dtype()])
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read ({error}); copy or download it again") from error
    missing = sorted((expected or set()) - entries.keys())
    if missing:
        raise ValueError(f"{str(file)!r} lacks {missing[0]!r}, which {_INDEX} places there; copy or download it again")
    return entries
