"""Atomic files and folders: a reader never sees half of one, not even after a power cut."""

import errno
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from pathlib import Path

from starft_hf.utils.space import named_if_full


# Pools, records and settings are far smaller.
MOST_BYTES = 32 * 2**20
# Seconds since a temporary file was last written to.
ABANDONED = 24 * 3600.0


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with a `~` at its beginning expanded, which a shell leaves as it is in `--output_dir=~/runs`."""
    return Path(os.path.expanduser(path))


def check_size(path: Path, most: int = MOST_BYTES) -> None:
    """Raise ValueError if a file, which may be untrusted, is too large to be read as a whole."""
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{str(path)!r} has {size:,} bytes; what it should hold takes no more than {most:,}")


def read_text(path: Path) -> str:
    """The text of a file, which may be untrusted; ValueError if it is too large or not in UTF-8."""
    check_size(path)
    return path.read_text(encoding="utf-8")


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, all or nothing."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path`, all or nothing."""
    with file_in_place_of(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def file_in_place_of(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file in the folder of `path`, renamed to it on exit, or removed on an exception.

    Flushed to disk before the rename and its folder after it: otherwise a power cut could leave an empty file under
    the final name. Temporary files for `path` that were left long ago are removed.
    """
    path = expanded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f"{glob.escape(path.name)}.*")
    with named_if_full(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with named_if_full(path):
            yield temporary
            apply_umask([temporary])
            flush(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove the temporary files of `file_in_place_of` that processes have left which were killed a while ago.

    `pattern` is of their names in `folder`, without the dot that they begin with.
    """
    for path in folder.glob(f".{pattern}"):
        # Another process may remove them too, or may remove its own.
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


@contextmanager
def folder_in_place_of(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for a folder; the errors of `check_free` on entry, and on exit if something is there by then.

    Of a link, the folder that it leads to is written. An empty folder that cannot be replaced, since it is a mount
    point or the one that it lies in may not be written to, gets its files one by one.
    """
    check_free(path)
    path = expanded(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    stays = path.is_dir() and (path.is_mount() or not os.access(path.parent, os.W_OK | os.X_OK))
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path if stays else path.parent))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        with named_if_full(path):
            yield temporary
            apply_umask(temporary.rglob("*"))
            if stays:
                _move_content(temporary, path)
            else:
                move_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def move_folder(source: Path, path: Path) -> None:
    """Flush the folder `source` to disk and rename it to `path`, on the same disk, unless that has content."""
    check_free(path)
    if path.exists():
        # Not every system can rename a folder to the name of an empty one.
        path.rmdir()
    flush_folder(source)
    os.rename(source, path)
    flush(path.parent)


def _move_content(source: Path, path: Path) -> None:
    """Flush `source`, the only entry of the folder `path`, to disk, and move what it holds there."""
    if any(entry != source for entry in path.iterdir()):
        raise FileExistsError(
            f"{str(path)!r} is a folder with files in it, which would be overwritten; choose another"
        )
    flush_folder(source)
    # What says that there is a model comes last.
    for entry in sorted(source.iterdir(), key=lambda entry: (entry.suffix == ".json", entry.name)):
        os.rename(entry, path / entry.name)
    source.rmdir()
    flush(path)


def flush_folder(folder: Path) -> None:
    """Flush a folder to disk, with everything in it: a power cut leaves all of it, under its name once that is."""
    for content in (*folder.rglob("*"), folder):
        # Of a link, the folder that names it is flushed.
        if not content.is_symlink():
            flush(content)


def remove_at_last(path: Path) -> None:
    """Remove a file that marks its folder as incomplete, once everything in the folder is on the disk.

    On return the folder and its name in its own folder are on the disk, without the file.
    """
    flush_folder(path.parent)
    path.unlink(missing_ok=True)
    flush(path.parent)
    flush(path.parent.parent)


def flush(path: Path) -> None:
    """Flush a file, or the names that a folder contains, to disk."""
    # Windows cannot open folders, and some file systems cannot flush them.
    with suppress(OSError) if path.is_dir() else nullcontext():
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Not every file system can flush files, which is not the same as a write that failed.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
        finally:
            os.close(descriptor)


def apply_umask(paths: Iterable[Path]) -> None:
    """Let those access files whom the umask lets access new ones: mkstemp and safetensors admit only their owner."""
    granted = 0o666 & ~_umask()
    for path in paths:
        if path.is_file() and not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode | granted != mode:
                path.chmod(mode | granted)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def leads_out(file: Path, folder: Path | None = None) -> bool:
    """Whether a file in `folder`, by default its own, is a link out of it: whoever made it could have any file copied.

    A snapshot in the Hub's cache consists of links to blobs of its repository, some of which may in turn be links to
    blobs that all repositories of the cache share: these do not lead out.
    """
    folder = (file.parent if folder is None else folder).resolve()
    roots = [folder]
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            roots = [parent.parent, parent.parent.parent / "blobs"]
    return not any(file.resolve().is_relative_to(root) for root in roots)


def check_writable(path: str | os.PathLike[str], what: str, *, is_file: bool = False) -> None:
    """Check that something can be written to a folder, or to a file, which need not exist; `what` names it.

    Raises:
        PermissionError: if nothing may be written there.
        NotADirectoryError: if a folder in the path is a file, a link that leads nowhere, or has too long a name.
    """
    path = expanded(path)
    folder, passed = path.parent if is_file else path, f"{what} is {str(path)!r}"
    paths = (folder.absolute(), *folder.absolute().parents)
    for each in reversed(paths):
        why = _errno_of(each)
        if why == errno.ELOOP:
            raise NotADirectoryError(
                f"{passed}, and {str(each)!r} is a link that leads back to itself; choose another folder"
            )
        if why == errno.ENOENT and each.is_symlink():
            raise NotADirectoryError(
                f"{passed}, and {str(each)!r} is a link to {os.readlink(each)!r}, which does not exist; create that, "
                "or choose another folder"
            )
    found = next(each for each in paths if os.path.exists(each))
    if not os.access(found, os.W_OK | os.X_OK):
        raise PermissionError(f"{passed}, and nothing can be written to {str(found)!r}; choose another folder")
    if not found.is_dir():
        raise NotADirectoryError(f"{passed}, and {str(found)!r} is a file; choose another folder")
    for name in path.absolute().relative_to(found).parts:
        if _errno_of(found / name) == errno.ENAMETOOLONG:
            raise NotADirectoryError(
                f"{passed}, and the disk has no names of {len(os.fsencode(name))} bytes; choose a shorter one"
            )


def _errno_of(path: Path) -> int | None:
    """Why a path cannot be followed; None if it can."""
    try:
        path.stat()
    except OSError as error:
        return error.errno
    return None


def unused_folder(name: str) -> Path:
    """`name`, or `name-2`, `name-3`, ...: the first that does not exist or is an empty folder."""
    number = 1
    while not is_free(path := Path(name if number == 1 else f"{name}-{number}")):
        number += 1
    return path


def is_free(folder: str | os.PathLike[str]) -> bool:
    """Whether writing into `folder` cannot overwrite anything: it does not exist or is empty."""
    folder = expanded(folder)
    # Not with Path.exists, which raises an error for a name that is too long.
    return not os.path.exists(folder) or (folder.is_dir() and not any(folder.iterdir()))


def check_free(folder: str | os.PathLike[str], what: str = "output") -> None:
    """Check that a folder, which `what` names, can be written, and that this overwrites nothing.

    Raises:
        FileExistsError: if it is a file or a folder that is not empty.
        PermissionError, NotADirectoryError: if nothing can be written there.
    """
    folder = expanded(folder)
    if not is_free(folder):
        kind = "a folder with files in it" if folder.is_dir() else "a file"
        raise FileExistsError(f"{str(folder)!r} is {kind}, which would be overwritten; choose another or remove it")
    check_writable(folder, what)


def local_or_hub(source: str | os.PathLike[str], what: str) -> str:
    """The path of something here, with `~` expanded, or the id of something on the Hub, which is not looked for.

    Args:
        source: a path or an id.
        what: what it names in the error, such as "model".

    Raises:
        FileNotFoundError: if it looks like a path and nothing is there, so that asking the Hub would not help.
        ValueError: if it is neither a path nor an id.
    """
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"{what} is a {type(source).__name__}; pass a path, or the id of a repository on the Hub")
    text = os.fspath(source)
    path = expanded(text)
    if path.exists():
        return str(path)
    parts = text.replace("\\", "/").strip("/").split("/")
    # An id is "name" or "owner/name".
    if (
        not text.strip()
        or not isinstance(source, str)
        or path.is_absolute()
        or text.startswith((".", "~"))
        or text.endswith("/")
        or "\\" in text
        or len(parts) > 2
        or (len(parts) == 2 and path.parent.is_dir())
    ):
        near = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        close = get_close_matches(path.name, near, n=1)
        hint = f" Did you mean {str(path.with_name(close[0]))!r}?" if close and path.name else ""
        raise FileNotFoundError(f"there is no folder {text!r}; pass a folder or a Hub id as {what}.{hint}")
    return text


def archive_of(path: str) -> str | None:
    """The archive of a path into one, as `zip://1.png::photos.zip`; None for a file, in whose name "::" may be."""
    _, separator, outer = path.rpartition("::")
    return outer if separator and not os.path.isfile(path) else None
