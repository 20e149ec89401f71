"""Reads Qt resource files (.rcc), in which GCompris keeps its photographs."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path


_COMPRESSED, _DIRECTORY, _COMPRESSED_ZSTD = 1, 2, 4


def read_rcc(path: Path) -> dict[str, bytes]:
    """The files in a Qt resource file, by their path in it.

    Numbers are big-endian. The header holds the offsets of three tables: a tree of directories and files, the contents
    and the names. Nodes of the tree are numbered in order, and a directory names the first of its children.

    Raises:
        ValueError: if it is not a resource file, or has a file compressed with Zstandard.
    """
    content = path.read_bytes()
    if content[:4] != b"qres":
        raise ValueError(f"{str(path)!r} is not a Qt resource file: it does not begin with 'qres'")
    version, tree, data, names = struct.unpack_from(">4I", content, 4)
    # Since version 2 every node ends with a time of modification.
    node_size = 14 if version == 1 else 22

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", content, names + offset)
        start = names + offset + 6
        return content[start : start + 2 * length].decode("utf-16-be")

    def walk(node: int, parent: str) -> Iterator[tuple[str, bytes]]:
        name_offset, flags = struct.unpack_from(">IH", content, tree + node * node_size)
        # The root has no name.
        own = f"{parent}/{name_at(name_offset)}".lstrip("/") if node else ""
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", content, tree + node * node_size + 6)
            for child in range(first, first + count):
                yield from walk(child, own)
            return
        (offset,) = struct.unpack_from(">I", content, tree + node * node_size + 10)
        (length,) = struct.unpack_from(">I", content, data + offset)
        found = content[data + offset + 4 : data + offset + 4 + length]
        if flags & _COMPRESSED_ZSTD:
            raise ValueError(f"{own!r} in {str(path)!r} is compressed with Zstandard; unpack it with Qt's rcc")
        # Compressed content begins with its size before compression.
        yield own, zlib.decompress(found[4:]) if flags & _COMPRESSED else found

    return dict(walk(0, ""))
