"""Reading of files and repositories of templates. They may be untrusted: nothing is ever unpickled."""

import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from starft_hf.utils.files import MOST_BYTES, check_size, read_text
from starft_hf.utils.untrusted import read_json, read_yaml


# The pool in a repository, and the record of a run, which has the pool of the run.
POOL_FILE = "starft_pool.json"
_RUN_FILE = "starft.json"
_RUN_FORMAT = 1


def _read_tensor_file(path: Path) -> Any:
    check_size(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes; templates take no more than {MOST_BYTES:,}")
    return torch.load(path, map_location="cpu", weights_only=True)


def packaged_text(name: str) -> str:
    """The text of a file beside this module, such as "prompts/ask.txt"."""
    return (files("starft_hf.spuriosity") / name).read_text(encoding="utf-8").strip()


READERS = {
    ".json": read_json,
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".txt": lambda path: [line.strip() for line in read_text(path).splitlines() if line.strip()],
    ".pt": _read_tensor_file,
    ".pth": _read_tensor_file,
}


def read_templates(path: Path) -> Any:
    """The content of a file of templates, as plain lists, mappings and strings."""
    if path.suffix not in READERS:
        raise ValueError(f"{str(path)!r} has the suffix {path.suffix!r}; a pool is read from {', '.join(READERS)}")
    try:
        return READERS[path.suffix](path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} could not be read as a spuriosity pool: {error}") from error


def read_repository(source: str) -> Any:
    """The pool of a folder or of a repository of the Hub, or of the run that is recorded there."""
    if (path := _file_of(source, POOL_FILE)) is not None:
        return read_templates(path)
    if (path := _file_of(source, _RUN_FILE)) is None:
        raise FileNotFoundError(f"{source!r} has neither {POOL_FILE} nor {_RUN_FILE}, so there is no pool to load")
    record = read_templates(path)
    if not isinstance(record, dict) or not isinstance(pool := record.get("pool"), dict | None):
        raise ValueError(f"{_RUN_FILE} of {source!r} cannot be read: it is not the record of a run")
    if record.get("format") != _RUN_FORMAT:
        raise ValueError(
            f"{_RUN_FILE} of {source!r} has format {record.get('format')!r}, this version reads {_RUN_FORMAT}; update "
            "starft_hf"
        )
    if pool is None:
        raise ValueError(f"the run in {source!r} had no spuriosity pool, because its regularizer takes none")
    return pool


def _file_of(source: str, name: str) -> Path | None:
    path = Path(source, name)
    if Path(source).is_dir():
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError as error:
        # Without a connection, only the last file to try can say so.
        if name == _RUN_FILE and isinstance(error, LocalEntryNotFoundError):
            raise
        return None
