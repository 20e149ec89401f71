"""Merging of saved adapters into their models."""

from os import PathLike
from pathlib import Path

from starft_hf.hub.classifier import load, local_folder
from starft_hf.hub.record import RECORD_FILE, RunRecord
from starft_hf.models.adapters import merge_and_save
from starft_hf.models.heads import save_head
from starft_hf.utils.files import check_free, folder_in_place_of


def merge_checkpoint(
    adapter: str | PathLike[str],
    output: Path,
    *,
    base: str | PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Merge an adapter in a folder or a Hub repository, and write a plain checkpoint that `load` reads as the same.

    The code of its base model, which is `base` or the one that it names, is run if it has its own and
    `trust_remote_code` allows it.

    Raises:
        FileExistsError: if there is something in `output`.
        PermissionError: if nothing can be written there.
        ValueError: if there is no adapter.
    """
    check_free(output)
    folder = local_folder(adapter)
    loaded = load(folder, base=base, trust_remote_code=trust_remote_code)
    with folder_in_place_of(output) as temporary:
        merge_and_save(loaded.model, loaded.processor, temporary)
        # As they were loaded, whatever else a file that is a link may lead to.
        if (folder / RECORD_FILE).is_file():
            RunRecord.load(folder).save(temporary)
        if loaded.head is not None:
            save_head(loaded.head.state_dict(), loaded.class_names or (), temporary)
