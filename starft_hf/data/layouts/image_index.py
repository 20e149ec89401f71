"""Finds the images that a table names, however it names them."""

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from starft_hf.data.layouts.split_names import split_in
from starft_hf.data.layouts.tree import FileTree


# Values of a column that are tried before all of them are.
_TRIED = 100


class ImageIndex:
    """The images of a tree by the ends of their paths: with or without folders and ending, in any case.

    Args:
        tree: the files.
    """

    def __init__(self, tree: FileTree):
        self.tree = tree
        self._by_parts: dict[int, dict[str, list[str]]] = {}

    def share(self, values: Sequence[Any], table: str) -> float:
        """The share of the first values of a column that name images."""
        tried = [value for value in values if value is not None][:_TRIED]
        return sum(image is not None for image in self.find(tried, table)) / len(tried) if tried else 0.0

    def find(self, values: Sequence[Any], table: str, *, strict: bool = False) -> list[str | None]:
        """The image that every value names, None for those that name none.

        A path is relative to the folder of `table`, else to the root, else to whatever folder most of the values are
        found in, first of those below that of the table or of its split, else it is the only one with that end. Of
        paths of another machine or folder, as many of the first folders are disregarded as all of them have in common.

        Raises:
            ValueError: with `strict`, if images of two folders may be meant.
        """
        folder = posixpath.dirname(table)
        names = self._within([None if value is None else self._plain(str(value)) for value in values], folder)
        found = [[] if name is None else self._ending_with(name) for name in names]
        prefixes: Counter[str] = Counter()
        for name, images in zip(names, found, strict=True):
            prefixes.update({_prefix(image, name or "") for image in images})
        own = next((prefix for prefix in (f"{folder}/" if folder else "", "") if prefix in prefixes), None)
        # Paths relative to the table are not looked for elsewhere: an image of that name there is another one.
        below = f"{folder}/" if folder else ""
        split = split_in(table)

        def place(prefix: str) -> tuple[bool, bool, int]:
            is_of_split = split is not None and split_in(prefix) == split
            return not prefix.startswith(below), not is_of_split, -prefixes[prefix]

        usual = sorted(prefixes, key=lambda prefix: (place(prefix), prefix))
        order = [own] if own is not None else usual
        if strict and len(order) > 1 and place(order[0]) == place(order[1]):
            for name, images in zip(names, found, strict=True):
                if len({_prefix(image, name or "") for image in images}.intersection(order[:2])) > 1:
                    raise ValueError(
                        f"its image {name!r} is in {order[0]!r} and in {order[1]!r}; write the folder in the table, "
                        "or move the table into it"
                    )
        rank = {prefix: place for place, prefix in enumerate(order)}
        chosen: list[str | None] = []
        for name, images in zip(names, found, strict=True):
            here = [image for image in images if _prefix(image, name or "") in rank]
            first = min(here, key=lambda image: rank[_prefix(image, name or "")], default=None)
            chosen.append(first or self._outside(name, folder))
        return chosen

    def _plain(self, value: str) -> str:
        path = value.strip().replace("\\", "/")
        if os.path.isabs(path) and os.path.exists(path):
            path = os.path.relpath(path, self.tree.root).replace(os.sep, "/")
        return posixpath.normpath(path) if path else path

    def _within(self, names: Sequence[str | None], folder: str) -> list[str | None]:
        """The same paths without the folders that all are in, where there are no such images."""
        given = [name for name in names if name]
        if any(self._ending_with(name) or self._outside(name, folder) for name in given[:_TRIED]):
            return list(names)
        levels = zip(*(name.split("/")[:-1] for name in given), strict=False)
        common = list(takewhile(lambda folders: len(set(folders)) == 1, levels))
        for dropped in range(1, len(common) + 1):
            shorter = [name and "/".join(name.split("/")[dropped:]) for name in names]
            if any(self._ending_with(name) for name in shorter if name):
                return shorter
        return list(names)

    def _ending_with(self, name: str) -> list[str]:
        parts = name.count("/") + 1
        if parts not in self._by_parts:
            index = defaultdict(list)
            for image in self.tree.images:
                tail = "/".join(image.rsplit("/", parts)[-parts:]).casefold()
                index[tail].append(image)
                index[os.path.splitext(tail)[0]].append(image)
            self._by_parts[parts] = dict(index)
        return self._by_parts[parts].get(name.casefold(), [])

    def _outside(self, name: str | None, folder: str) -> str | None:
        """A file that lies outside of the tree."""
        if name is None or not name.startswith("../"):
            return None
        path = posixpath.normpath(posixpath.join(folder, name))
        return path if os.path.isfile(self.tree.path(path)) else None


def _prefix(image: str, name: str) -> str:
    """The folder that a name is relative to, with a slash at its end."""
    parts = name.count("/") + 1
    return image[: len(image) - len("/".join(image.rsplit("/", parts)[-parts:]))]
