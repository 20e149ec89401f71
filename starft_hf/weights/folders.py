"""Folders of `save_pretrained`, read and written tensor by tensor."""

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
from transformers.utils import logging

from starft_hf.models.heads import HEAD_FILE, HEAD_NAME, load_head, save_head
from starft_hf.utils.files import folder_in_place_of, read_text
from starft_hf.weights.interpolation import difference, traits_of


logger = logging.get_logger(__name__)

Folder = str | os.PathLike[str]

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Other dtypes, such as packed or 8-bit floating-point weights, cannot be averaged number by number.
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}

# Numbers that are combined at once. Up to here torch uses one thread, since waking others would take longer than the
# sum, and temporary tensors are too small to leave gaps in memory between the results.
_PIECE = 2**15

# Configurations and processors consist of these files.
_COPIED = {".json", ".txt", ".model", ".jinja", ".py"}
# These describe the run that wrote the checkpoint, or weights that are not copied.
_EXCLUDED = ("starft_checkpoint.json", "trainer_state.json", "_results.json", ".index.json")


@dataclass(frozen=True)
class Checkpoint:
    """A model in a folder, without the values of its tensors.

    Attributes:
        folder: the folder, as `save_pretrained` or `StarFTTrainer` writes it.
        tensors: the tensors of the model by name, on the meta device.
        files: the file of each tensor.
        class_names: classes of the classification head beside the model, or None without one.
        traits: what has to be the same in two checkpoints for their weights to be averaged.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    files: Mapping[str, Path]
    class_names: Sequence[str] | None
    traits: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Folder) -> "Checkpoint":
        """The checkpoint in `folder`.

        Raises:
            FileNotFoundError: if there is no such folder, or no configuration or weights in it.
            ValueError: if it is an adapter, its weights are pickled, quantized or damaged, or tensors are missing.
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(
                f"{str(folder)!r} is not a folder; a model on the Hub has to be downloaded first, with "
                "huggingface_hub.snapshot_download"
            )
        if (path / "adapter_config.json").exists():
            raise ValueError(
                f"{str(folder)!r} holds an adapter, whose product with other adapters' is not an average of models; "
                "merge it into its model first, with StarFTTrainer.merge_and_save or PeftModel.merge_and_unload"
            )
        if not (path / "config.json").is_file() or _leads_out(path / "config.json"):
            raise FileNotFoundError(
                f"{str(folder)!r} has no config.json of its own, so no model could be loaded from it; pass a folder "
                "that save_pretrained has written"
            )
        config = AutoConfig.from_pretrained(path)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(
                f"{str(folder)!r} holds quantized weights, which cannot be averaged; pass the checkpoints from before "
                "quantization"
            )
        headers = {file: _read_header(file, expected) for file, expected in _weight_files(path).items()}
        tensors = {name: value for header in headers.values() for name, value in header.items()}
        files = {name: file for file, header in headers.items() for name in header}
        head, class_names = load_head(path) if (path / HEAD_FILE).is_file() else (None, None)
        traits = traits_of(tensors if head is None else tensors | head.state_dict(prefix=f"{HEAD_NAME}."), config)
        traits["class names of the head"] = tuple(class_names or ())
        return cls(path, tensors, files, class_names, traits)

    def read(self, name: str) -> Tensor:
        """A tensor, memory-mapped: what was read of it leaves memory with the last reference."""
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)

    def split(self, max_shard_size: int | str) -> StateDictSplit:
        """Which tensors are written to which file; raises ValueError if `max_shard_size` is not a size."""
        return split_torch_state_dict_into_shards(dict(self.tensors), max_shard_size=max_shard_size)


def open_alike(folders: Sequence[Folder]) -> list[Checkpoint]:
    """The checkpoints in `folders`, all of one architecture.

    Raises:
        FileNotFoundError: as `Checkpoint.open`.
        ValueError: as `Checkpoint.open`, or if there are none or two of them differ, naming the first difference.
    """
    if isinstance(folders, str | os.PathLike):
        raise ValueError(f"checkpoints is {str(folders)!r}; pass a list of folders")
    if not folders:
        raise ValueError("checkpoints is empty; pass at least one folder")
    first, *others = checkpoints = [Checkpoint.open(folder) for folder in folders]
    for other in others:
        found = difference(first.traits, other.traits, repr(str(first.folder)), repr(str(other.folder)))
        if found is not None:
            raise ValueError(f"the checkpoints differ: {found}; only models of one architecture can be averaged")
    return checkpoints


def write_checkpoint(
    output: Folder,
    checkpoints: Sequence[Checkpoint],
    combine: Callable[[Sequence[Tensor]], Tensor],
    max_shard_size: int | str,
) -> Path:
    """Write what checkpoints of one architecture combine to, at once or not at all; returns the folder.

    Names, dtypes, configuration and processor are those of the first. `combine` is called with the same piece of a
    tensor in each of the checkpoints, so it must compute every number by itself.

    Raises:
        FileExistsError: if `output` is a file or a folder that is not empty.
        ValueError: if `max_shard_size` is not a size.
    """
    first = checkpoints[0]
    split = first.split(max_shard_size)

    def combined(name: str) -> Tensor:
        result = torch.empty_like(first.tensors[name], device="cpu")
        parts = [checkpoint.read(name).view(-1).split(_PIECE) for checkpoint in checkpoints]
        for target, *pieces in zip(result.view(-1).split(_PIECE), *parts, strict=True):
            target.copy_(combine(pieces))
        return result

    with folder_in_place_of(Path(output)) as folder:
        _copy_settings(first.folder, folder)
        # Not with huggingface_hub.save_torch_state_dict, which needs all shards in memory at once.
        for file_name, names in split.filename_to_tensors.items():
            save_file({name: combined(name) for name in names}, folder / file_name, metadata={"format": "pt"})
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if first.class_names is not None:
            heads = [load_head(checkpoint.folder)[0].state_dict() for checkpoint in checkpoints]
            head = {key: combine([head[key] for head in heads]).to(value.dtype) for key, value in heads[0].items()}
            save_head(head, first.class_names, folder)
    return Path(output)


def _copy_settings(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if not file.is_file() or file.suffix not in _COPIED or file.name.endswith(_EXCLUDED):
            continue
        if _leads_out(file):
            logger.warning_once("%s is a link to %s, outside of its folder, and is not copied.", file, file.resolve())
        else:
            shutil.copyfile(file, target / file.name)


def _leads_out(file: Path) -> bool:
    """Whether a file is a link that leads out of its folder: whoever made it could have any file copied."""
    folder = file.parent.resolve()
    roots = [folder]
    # A snapshot in the Hub's cache consists of links to blobs of its repository, some of which may in turn be links to
    # blobs that all repositories of the cache share.
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            roots = [parent.parent, parent.parent.parent / "blobs"]
    return not any(file.resolve().is_relative_to(root) for root in roots)


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """The files of a model's weights, and the tensors that the index, if there is one, places in each."""
    if (folder / _WHOLE).is_file():
        return {folder / _WHOLE: []}
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
    shards: dict[Path, list[str]] = {}
    outside: list[str] = []
    try:
        for name, file in json.loads(read_text(folder / _INDEX))["weight_map"].items():
            shards.setdefault(folder / file, []).append(name)
            outside += [file] if Path(file).name != file else []
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(folder / _INDEX)!r} cannot be read ({error!r}); copy or download it again") from error
    if outside:
        raise ValueError(f"{_INDEX} in {str(folder)!r} names {outside[0]!r}, which is outside of the folder")
    for path in shards:
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} lacks {path.name}, which {_INDEX} names; copy or download it again"
            )
    return shards


def _read_header(file: Path, expected: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a file, on the meta device."""
    tensors = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in _DTYPES:
                    raise ValueError(
                        f"{name!r} in {str(file)!r} is {dtype}, which cannot be averaged number by number; pass the "
                        "checkpoints from before quantization"
                    )
                tensors[name] = opened.get_tensor(name).to("meta")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(file)!r} cannot be read ({error}); copy or download it again") from error
    missing = sorted(set(expected) - tensors.keys())
    if missing:
        raise ValueError(f"{str(file)!r} lacks {missing[0]!r}, which {_INDEX} places there; copy or download it again")
    return tensors
