"""The files below a folder, listed once."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from starft_hf.data.image_formats import is_image
from starft_hf.data.layouts.results import FIGURES, result_in


HIDDEN = "it is hidden"
BROKEN_LINK = "it is a link to nothing"
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
    """

    def __init__(self, root: Path, files: Sequence[str] | None = None):
        self.root = root.absolute()
        self.left_out: dict[str, str] = {}
        self.result: tuple[str, str] | None = None
        if files is not None:
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
            path = prefix + entry.name
            if entry.name.startswith((".", "__")):
                self.left_out[path] = HIDDEN
            elif result is not None and (entry.name in FIGURES or is_image(entry.name)):
                self.left_out[path] = _FIGURE.format(*result)
            elif entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if real not in above:
                    yield from self._walk(Path(entry.path), f"{path}/", (*above, real), bar)
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
