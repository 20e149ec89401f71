"""How people lay out images on disk: one module per layout, each of which says which file is in which split.

A layout is a function `read(tree) -> Layout | None`, listed in `resolve.LAYOUTS` in the order in which they are tried:
None if the files of a `FileTree` are not laid out that way, ValueError if they are and something is wrong with them.
"""

from starft_hf.data.layouts.layout import Layout
from starft_hf.data.layouts.tree import FileTree


__all__ = ["FileTree", "Layout"]
