"""Copies of checkpoints to publish."""

import json
import os
import shutil
from pathlib import Path

from starft_hf.training.checkpointing.files import (
    STATE_FILE,
    CheckpointError,
    list_files,
    name_of,
    read_content,
)
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.untrusted import read_json


PREFIX = ".uploading-"


def copy_to_publish(checkpoint: Path) -> Path:
    """A copy of a valid checkpoint beside it, of the files it lists, which stays when that is removed.

    It names the best checkpoint by its folder alone, because a path reveals the machine.

    Raises:
        CheckpointError: if the list of the checkpoint cannot be read.
    """
    content = read_content(checkpoint)
    if content is None:
        raise CheckpointError(f"{checkpoint} was not written by StarFTTrainer")
    target = checkpoint.with_name(f"{PREFIX}{checkpoint.name}")
    shutil.rmtree(target, ignore_errors=True)
    for name in content["files"]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _link(checkpoint / name, target / name)
    state = read_json(target / STATE_FILE)
    if (best := state.get("best_model_checkpoint")) is not None:
        text = json.dumps({**state, "best_model_checkpoint": name_of(best)}, indent=2) + "\n"
        write_text_atomically(target / STATE_FILE, text)
    list_files(target, {name: value for name, value in content.items() if name not in ("format", "files")})
    return target


def remove_copies(output_dir: Path) -> None:
    """Remove the copies that a process has left which ended while it uploaded them."""
    for path in output_dir.glob(f"{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        # Not every file system has links.
        shutil.copy(source, target)
