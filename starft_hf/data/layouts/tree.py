"""The files below a folder, listed once."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from starft_hf.data.image_formats import is_image
from starft_hf.data.layouts.results import FIGURES, result_in
from starft_hf.utils.text import as_utf8


HIDDEN = "it is hidden"
BROKEN_LINK = "it is a link to nothing"
NOT_UTF8 = "its name is not in UTF-8"
_RESULT = "it is {}, as {} shows"
_FIGURE = "it belongs to {}, as {} shows"

# Seconds before listing files shows a progress bar.
_PATIENCE = 3


class FileTree:
    """All files below a folder, by their paths relative to it with forward slashes, in order.

    Links to folders are followed, except to one that is already being listed. What is hidden, with a name that starts
    with "." or "__", is not in `files` but in `left_out`, where a folder counts once. So is a folder that a run or
    another command has written. `result` says what `root` itself is if it is one, and the files that say so: its
    figures are left out then, and what else lies in it is not.

    Args:
        root: the folder.
        files: its files, where they are known; None: all that lie below it.

    Raises:
        OSError: if a folder cannot be listed.
        ValueError: if the path of the folder, of one of the given files, or of a folder with images is not in UTF-8.
            Other files with such names are in `left_out`.
    """

    def __init__(self, root: Path, files: Sequence[str] | None = None):
        self.root = root.absolute()
        self.left_out: dict[str, str] = {}
        self.result: tuple[str, str] | None = None
        check_utf8(self.root)
        if files is not None:
            for file in files:
                check_utf8(self.root / file)
            self.files = tuple(files)
            return
        with tqdm(desc="Listing files", unit=" files", delay=_PATIENCE, leave=False) as bar:
            self.files = tuple(self._walk(self.root, "", (os.path.realpath(root),), bar))

    def _walk(self, folder: Path, prefix: str, above: tuple[str, ...], bar: Any) -> Iterator[str]:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        result = result_in([entry.name for entry in entries])
        if result is not None and prefix:
            self.left_out[prefix.rstrip("/")] = _RESULT.format(*result)
            return
        self.result = self.result or result
        for entry in entries:
            name = as_utf8(entry.name)
            path = prefix + name
            if entry.name.startswith((".", "__")):
                self.left_out[path] = HIDDEN
            elif result is not None and (entry.name in FIGURES or is_image(entry.name)):
                self.left_out[path] = _FIGURE.format(*result)
            elif name != entry.name and not entry.is_dir():
                self.left_out[path] = NOT_UTF8
            elif entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                below = self._walk(Path(entry.path), f"{path}/", (*above, real), bar) if real not in above else ()
                if name == entry.name:
                    yield from below
                elif any(map(is_image, below)):
                    # It may be a class.
                    check_utf8(Path(entry.path))
                else:
                    self.left_out[path] = NOT_UTF8
            elif entry.is_file():
                bar.update()
                yield path
            else:
                self.left_out[path] = BROKEN_LINK

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The files that Pillow can open, by the ends of their names."""
        return tuple(path for path in self.files if is_image(path))

    def path(self, file: str) -> str:
        """The absolute path of a file."""
        return os.path.join(self.root, *file.split("/"))

    def relative(self, path: str) -> str:
        """What `path` gave, for an absolute path."""
        return os.path.relpath(path, self.root).replace(os.sep, "/")


def check_utf8(path: Path) -> None:
    """Raise ValueError if a path has bytes that are not UTF-8, which tables of images cannot hold."""
    if (shown := as_utf8(str(path))) != str(path):
        raise ValueError(f"the path '{shown}' is not in UTF-8: rename what has a backslash in it here")
