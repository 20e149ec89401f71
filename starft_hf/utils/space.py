"""Full disks, and what is said of them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# What the system says of a full disk and of an exhausted quota.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def error_of_space(error: BaseException) -> BaseException | None:
    """The error of a full disk or an exhausted quota that `error` is or was caused by; None if there is none."""
    links = [error]
    while (former := links[-1].__cause__ or links[-1].__context__) is not None and former not in links:
        links.append(former)
    # safetensors passes on the words of the system, and not its number.
    words = [os.strerror(number) for number in _NO_SPACE]
    found = [
        link for link in links if getattr(link, "errno", None) in _NO_SPACE or any(text in str(link) for text in words)
    ]
    return found[-1] if found else None


def in_words(error: BaseException) -> str:
    """An error in parentheses."""
    return f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"


def room_in(folder: Path) -> str:
    """How much space is left for a folder, as a clause."""
    found = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path())
    return f"with {shutil.disk_usage(found).free / 2**20:.1f} MiB left on the disk"


@contextmanager
def named_if_full(path: Path) -> Iterator[None]:
    """Say what could not be written, and what to do, where writing to `path` raises an error of a full disk."""
    try:
        yield
    except Exception as error:
        cause = error_of_space(error)
        if cause is None:
            raise
        raise OSError(
            errno.ENOSPC,
            f"{str(path)!r} could not be written, {room_in(path.parent)} {in_words(cause)}; make room, or choose "
            "another folder, and start again",
        ) from error
