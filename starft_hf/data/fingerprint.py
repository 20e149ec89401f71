"""Short keys of images and of their preprocessing, which what is cached of them depends on."""

import contextlib
import hashlib
import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.table import ConcatenationTable, MemoryMappedTable

from starft_hf.data.images import SCALED
from starft_hf.utils.files import archive_of
from starft_hf.utils.hashing import digest


# The version of transformers stands for the code of these; classes of others are identified by their source.
_LIBRARIES = ("torch", "transformers", "peft", "starft_hf")

# So many of the files that a table refers to are read, each this far: if files are rewritten with the same times and
# sizes, most of them differ.
_FILES_READ = 64
_BYTES_READ = 2**20


def code_of(kind: type) -> list[str | None]:
    """The name of a class and, unless a library defines it, its source as far as Python knows it."""
    source = None
    if kind.__module__.partition(".")[0] not in _LIBRARIES:
        with contextlib.suppress(OSError, TypeError):
            source = inspect.getsource(kind)
    return [kind.__module__, kind.__qualname__, source]


def preprocessing_fingerprint(image_processor: Any, image_decoding: str = SCALED) -> str:
    """A key of the image processor's deterministic preprocessing, and of how images are decoded for it."""
    return digest([code_of(type(image_processor)), image_processor.to_dict(), image_decoding])


def images_fingerprint(dataset: Dataset, column: str, also: Sequence[str] = ()) -> str:
    """A key of the images of a dataset in their order, and of the columns `also`.

    The fingerprint of `datasets` depends on how a table was made, not on its content, so every byte of a table in
    memory counts. Files, of tables and of images, count by their sizes and times, and a sample of the image files by
    its content as well.
    """
    columns = [column, *also]
    tables = [Path(file["filename"]) for file in dataset.cache_files]
    # Of a path into an archive, as in `zip://1.png::photos.zip`, the archive counts.
    paths = [Path(archive_of(path) or path) for path in dict.fromkeys(_image_paths(dataset, column))]
    return digest(
        [
            [dataset._fingerprint, len(dataset), columns],
            [file_state(file) for file in [*tables, *paths]],
            [_content_of(file) for file in paths[:: -(-len(paths) // _FILES_READ) or 1]],
            [_rows_digest(table, columns) for table in _in_memory(dataset.data)],
            [_rows_digest(table, ["indices"]) for table in _in_memory(dataset._indices)],
        ]
    )


def _in_memory(table: Any) -> list[Any]:
    """The parts of a table that are not files."""
    blocks = [block for row in table.blocks for block in row] if isinstance(table, ConcatenationTable) else [table]
    return [block for block in blocks if block is not None and not isinstance(block, MemoryMappedTable)]


def _rows_digest(table: Any, columns: Sequence[str]) -> str:
    content = table.table.select([name for name in columns if name in table.column_names])
    sink = _Hashing()
    with pa.ipc.new_stream(pa.PythonFile(sink, "w"), content.schema.remove_metadata()) as stream:
        stream.write_table(content.replace_schema_metadata())
    return sink.hasher.hexdigest()


class _Hashing(io.RawIOBase):
    """A file that only hashes what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.hasher = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.hasher.update(content)
        return len(content)


def _image_paths(dataset: Dataset, column: str) -> list[str]:
    paths: list[str] = []
    for chunk in dataset.data.column(column).chunks:
        storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        if pa.types.is_struct(storage.type) and {"path", "bytes"} <= {field.name for field in storage.type}:
            embedded = storage.field("bytes").is_valid()
            pairs = zip(storage.field("path").to_pylist(), embedded.to_pylist(), strict=True)
            paths += [path for path, has_bytes in pairs if path is not None and not has_bytes]
        elif pa.types.is_string(storage.type):
            paths += [path for path in storage.to_pylist() if path is not None]
    return paths


def file_state(file: Path) -> list[int] | None:
    """The size and the time of a file; None if it cannot be looked at."""
    try:
        state = file.stat()
    except OSError:
        # Remote files have an address instead, which is taken to determine their content.
        return None
    return [state.st_size, state.st_mtime_ns]


def _content_of(file: Path) -> str | None:
    try:
        with file.open("rb") as content:
            return hashlib.blake2b(content.read(_BYTES_READ), digest_size=16).hexdigest()
    except OSError:
        return None
