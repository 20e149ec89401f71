"""Merging of saved adapters into their models."""

import shutil
from os import PathLike
from pathlib import Path

from starft_hf.hub.classifier import load, local_folder
from starft_hf.hub.record import RECORD_FILE
from starft_hf.models.adapters import merge_and_save
from starft_hf.models.heads import HEAD_FILE
from starft_hf.utils.files import folder_in_place_of, leads_out


def merge_checkpoint(adapter: str | PathLike[str], output: Path, *, trust_remote_code: bool = False) -> None:
    """Merge an adapter in a folder or a Hub repository, and write a plain checkpoint that `load` reads as the same.

    The code of its base model is run if it has its own and `trust_remote_code` allows it.

    Raises:
        FileExistsError: if there is something in `output`.
        ValueError: if there is no adapter.
    """
    folder = local_folder(adapter)
    loaded = load(folder, trust_remote_code=trust_remote_code)
    with folder_in_place_of(output) as temporary:
        merge_and_save(loaded.model, loaded.processor, temporary)
        for name in (RECORD_FILE, HEAD_FILE):
            if (folder / name).is_file() and not leads_out(folder / name):
                shutil.copyfile(folder / name, temporary / name)
