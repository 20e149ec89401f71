"""What a run has saved, put together again."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from torch import nn

from starft_hf.heads import HEAD_FILE, load_head
from starft_hf.models import load_model, load_processor


@dataclass(frozen=True)
class SavedRun:
    """A model with what belongs to it.

    Attributes:
        model: the dual encoder, with its adapter where it has one.
        processor: its processor.
        head: the linear head of a cross-entropy run, or None.
        class_names: the classes of the head, or None.
    """

    model: Any
    processor: Any
    head: nn.Linear | None
    class_names: tuple[str, ...] | None


def load_saved(source: str | PathLike[str]) -> SavedRun:
    """The model in a folder or a repository of the Hub: a full one, or an adapter on top of the model it names.

    Raises:
        OSError: if there is no model, or none that an adapter could be put on.
    """
    folder = local_folder(source)
    if (folder / "adapter_config.json").is_file():
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
        if not base:
            raise OSError(f"the adapter in {str(source)!r} does not say which model it belongs to")
        model: Any = PeftModel.from_pretrained(load_model(base), folder)
    else:
        model = load_model(folder)
    head, names = load_head(folder) if (folder / HEAD_FILE).is_file() else (None, None)
    return SavedRun(model.eval(), load_processor(model, str(folder)), head, None if names is None else tuple(names))


def local_folder(source: str | PathLike[str]) -> Path:
    """The folder of a model, downloaded where it is on the Hub."""
    return Path(source) if Path(source).exists() else Path(snapshot_download(str(source)))
