"""Files and repositories that hold templates."""

import json
import zipfile
from pathlib import Path
from typing import Any

from starft_hf.utils.files import MOST_BYTES, check_size, read_text


# What a repository that holds nothing but a pool calls it.
POOL_FILE = "starft_pool.json"
# The record of a run, which holds its pool among other things.
_RUN_FILE = "starft.json"


def _read_json(path: Path) -> Any:
    return json.loads(read_text(path))


def _read_yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, *args: Any) -> Any:
            # A few lines of references to references are billions of entries.
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it refers to parts of itself (*name); write them out")
            return super().compose_node(*args)

    loader = Loader(read_text(path))
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _read_lines(path: Path) -> Any:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _read_tensor_file(path: Path) -> Any:
    import torch

    check_size(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes; templates take no more than {MOST_BYTES:,}")
    return torch.load(path, map_location="cpu", weights_only=True)


READERS = {
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".txt": _read_lines,
    ".pt": _read_tensor_file,
    ".pth": _read_tensor_file,
}


def read_templates(path: Path) -> Any:
    """What a file of templates holds, as plain lists, mappings and strings.

    Raises:
        ValueError: if its ending is not known or it cannot be read.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{str(path)!r} has the ending {path.suffix!r}; a pool is read from {', '.join(READERS)}")
    try:
        return READERS[path.suffix](path)
    except Exception as error:
        raise ValueError(f"{str(path)!r} could not be read as a spuriosity pool: {error}") from error


def read_repository(source: str) -> Any:
    """What the pool of a folder or of a repository of the Hub holds.

    Raises:
        ValueError: if it holds a run without a pool.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = Path(source) / POOL_FILE if Path(source).is_dir() else Path(hf_hub_download(source, POOL_FILE))
    except EntryNotFoundError:
        path = None
    if path is not None and path.is_file():
        return read_templates(path)
    path = Path(source) / _RUN_FILE if Path(source).is_dir() else Path(hf_hub_download(source, _RUN_FILE))
    if not path.is_file():
        raise FileNotFoundError(f"{source!r} has neither {POOL_FILE} nor {_RUN_FILE}, so there is no pool to load")
    record = read_templates(path)
    if not isinstance(record, dict) or not isinstance(pool := record.get("pool"), dict | None):
        raise ValueError(f"{_RUN_FILE} of {source!r} cannot be read: it is not the record of a run")
    if pool is None:
        raise ValueError(f"the run in {source!r} had no spuriosity pool, for its regularizer takes none")
    return pool
