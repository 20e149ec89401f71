"""Roboflow's export of classes as a table: `_classes.csv` beside the images of every split."""

import posixpath

import pandas as pd

from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.lookup import by_split, decode, find_files, joined, with_images
from starft_hf.data.layouts.split_names import TRAIN, split_of
from starft_hf.data.layouts.tables import read_table
from starft_hf.data.layouts.tree import FileTree


TABLE = "_classes.csv"
_FILE = "filename"
_NONE, _SEVERAL = "it is of none of the classes", "it is of several classes"


def read(tree: FileTree) -> Layout | None:
    """The layout, with the columns of the tables as classes; None for other folders.

    Raises:
        ValueError: if a table is damaged or has other classes than the others, or no image has exactly one class.
    """
    if not (found := find_files(tree, TABLE)):
        return None
    parts: list[pd.DataFrame] = []
    sources: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    classes: list[str] = []
    for source in found:
        flags = _flags(tree, source)
        own = [str(name) for name in flags]
        classes = classes or own
        if set(own) != set(classes):
            raise ValueError(
                f"{source} has the classes {', '.join(own)}, and {found[0]} has {', '.join(classes)}; export all "
                "splits together"
            )
        folder = posixpath.dirname(source)
        files = pd.Series([joined(folder, name) for name in flags.index], index=flags.index)
        counts = flags.sum(axis=1)
        left_out |= dict.fromkeys(files[counts == 0], _NONE) | dict.fromkeys(files[counts > 1], _SEVERAL)
        one, name = counts == 1, posixpath.basename(folder)
        split = split_of(name) or name or TRAIN
        if one.any():
            rows = pd.DataFrame({LABEL: flags[one].idxmax(axis=1).tolist(), "split": split})
            rows, missing = with_images(tree, rows, files[one].tolist(), source)
            left_out |= missing
            parts.append(rows)
            sources[split] = (*sources.get(split, ()), source)
    if not parts:
        several = list(left_out.values()).count(_SEVERAL)
        raise ValueError(
            f"no image of {', '.join(found)} has exactly one class: {several} have several. Classes must exclude each "
            "other: export a project of single-label classification, as a folder structure"
        )
    return Layout(
        splits=by_split(pd.concat(parts, ignore_index=True)),
        sources=sources,
        class_names=tuple(classes),
        left_out=left_out,
    )


def _flags(tree: FileTree, source: str) -> pd.DataFrame:
    """Whether images are of classes, as 0 or 1: a row for every image, by its name, and a column for every class."""
    table = read_table(tree.path(source))
    if _FILE not in table or len(table.columns) < 3:
        raise ValueError(
            f"{source} has the columns {', '.join(map(str, table))}; expected {_FILE}, and one of 0 and 1 for each of "
            "the classes"
        )
    names = [str(name) for name in table.pop(_FILE)]
    flags = {str(name): decode(table, name, {0: 0, 1: 1}, source) for name in table}
    return pd.DataFrame(flags).set_axis(names, axis="index")
