"""Writing files so that a reader never sees half of one."""

import os
import tempfile
from pathlib import Path


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` under a temporary name in the same folder, then rename it."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` under a temporary name in the same folder, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        grant_usual_access(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def grant_usual_access(path: str | Path) -> None:
    """Give a file from mkstemp, which grants nobody else access, what the umask gives any other."""
    os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def unused_folder(name: str) -> Path:
    """`name`, or with the first number behind it that makes it a folder which does not exist or is empty."""
    number = 1
    while not is_free(path := Path(name if number == 1 else f"{name}-{number}")):
        number += 1
    return path


def is_free(folder: Path) -> bool:
    """Whether writing into `folder` cannot overwrite anything: it does not exist or is empty."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
