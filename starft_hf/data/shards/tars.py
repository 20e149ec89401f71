"""Samples of tar files, and images that stay there: a path says where in its tar file an image lies."""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import fsspec
from fsspec.spec import AbstractFileSystem


PROTOCOL = "tarslice"
_BLOCK = 512
# The folder and the name up to its first dot, and all that follows; hidden files have none.
_KEY_AND_ENDING = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)

Sample = dict[str, tarfile.TarInfo]


class TarSliceFileSystem(AbstractFileSystem):
    """Opens `tarslice://START-SIZE/NAME::/path/to/shard.tar`, a file inside a tar file, without reading the rest.

    The end of such a path is that of an archive, as in `zip://1.png::photos.zip`, so that `datasets` opens it.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, fo: str, **kwargs: Any):
        super().__init__()
        self.archive = fo

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        start, size = map(int, self._strip_protocol(path).partition("/")[0].split("-"))
        with open(self.archive, "rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise EOFError(f"the tar file {self.archive!r} ends within {path!r}")
        return io.BytesIO(content)


fsspec.register_implementation(PROTOCOL, TarSliceFileSystem, clobber=True)


def slice_path(path: str, member: tarfile.TarInfo) -> str:
    """The path by which `datasets` opens a member of the tar file `path`."""
    return f"{PROTOCOL}://{member.offset_data}-{member.size}/{quote(member.name)}::{path}"


def samples(path: str) -> Iterator[tuple[str, Sample, tarfile.TarFile]]:
    """The samples of a tar file: the key, the members by their endings in lower case, and the open tar file.

    Members that follow each other and have the same name up to its first dot are a sample.

    Raises:
        ValueError: if it is not a tar file, is compressed or damaged, or has a member of a sample twice.
    """
    if "::" in path:
        raise ValueError(f"the path {path!r} contains '::', which separates archives in paths; rename it")
    try:
        with tarfile.open(path, "r:") as tar:
            key = ""
            members: Sample = {}
            for member in _members(tar, path):
                match = _KEY_AND_ENDING.fullmatch(member.name) if member.isreg() else None
                if match is None:
                    continue
                if match[1] != key:
                    if members:
                        yield key, members, tar
                    key, members = match[1], {}
                ending = match[2].lower()
                if ending in members:
                    raise ValueError(f"the shard {path!r} has {member.name!r} twice; write it anew with it once")
                members[ending] = member
            if members:
                yield key, members, tar
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"the shard {path!r} cannot be read ({error}); {_repair(path)}") from error


def _members(tar: tarfile.TarFile, path: str) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        # It would keep all of them.
        tar.members = []  # type: ignore[attr-defined]
    # `next` takes a damaged header for the end, which is a block of zeros or that of the file.
    with open(path, "rb") as file:
        file.seek(tar.offset)
        if file.read(_BLOCK).strip(b"\0"):
            raise tarfile.ReadError(f"it is damaged at byte {tar.offset}")


def _repair(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return (
                "it is compressed, which images do not gain from and which single images cannot be read of: gunzip it"
            )
    return "write or copy it again"
