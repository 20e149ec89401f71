"""CelebA as its authors and Kaggle distribute it: a table of attributes, one of splits, and a folder of faces."""

import posixpath
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.lookup import by_split, decode, find_files, joined, splits_of, stem, with_images
from starft_hf.data.layouts.tables import read_table
from starft_hf.data.layouts.tree import FileTree


ATTRIBUTES = ("list_attr_celeba.csv", "list_attr_celeba.txt")
PARTITION = ("list_eval_partition.csv", "list_eval_partition.txt")
CLASSES = ("dark", "blond")
SEXES = ("female", "male")

# The aligned faces; those in the wild have the same names.
_ALIGNED = "img_align_celeba"
_LABEL, _SEX = "Blond_Hair", "Male"
# Copies have -1 and 1, 0 and 1, or booleans.
_ATTRIBUTE = {-1: 0, 0: 0, 1: 1, "False": 0, "True": 1}


def read(tree: FileTree) -> Layout | None:
    """The layout: dark and blond hair as classes, the sex in the column "sex", every attribute in one of 0 and 1."""
    if not (tables := find_files(tree, *ATTRIBUTES)):
        return None
    if not (partitions := find_files(tree, *PARTITION)):
        raise ValueError(
            f"{str(tree.root)!r} has {tables[0]}, but neither {' nor '.join(PARTITION)}, which say which face is in "
            "which split; they are part of the download of CelebA"
        )
    attributes = _attributes(tree, tables[0])
    split_of = _partition(tree, partitions[0])
    folder = _folder(tree, attributes.index)
    left_out = {
        joined(folder, name): f"{partitions[0]} does not list it" for name in attributes.index if name not in split_of
    }
    attributes = attributes[attributes.index.isin(split_of.keys())]
    rows = pd.DataFrame(
        {
            LABEL: [CLASSES[value] for value in attributes[_LABEL]],
            "sex": [SEXES[value] for value in attributes[_SEX]],
            "split": [split_of[name] for name in attributes.index],
            **{name: attributes[name].to_numpy() for name in attributes},
        }
    )
    rows, missing = with_images(tree, rows, [joined(folder, stem(name)) for name in attributes.index], tables[0])
    parts = by_split(rows)
    return Layout(
        splits=parts,
        sources=dict.fromkeys(parts, (tables[0], partitions[0], folder or ".")),
        class_names=CLASSES,
        group_columns=(LABEL, "sex"),
        left_out={**left_out, **missing},
        notes_on_labels=(
            f"Labels are the attribute {_LABEL}: {CLASSES[0]} is all hair that is not {CLASSES[1]}. They read well in "
            'the caption template "a photo of a celebrity with {} hair."',
        ),
    )


def _attributes(tree: FileTree, file: str) -> pd.DataFrame:
    """The attributes as 0 and 1, by the name of the image."""
    table = _read(tree, file)
    for name in (_LABEL, _SEX):
        if name not in table:
            raise ValueError(f"{file} has no attribute {name!r}; its columns are {', '.join(map(str, table))}")
    columns = {str(name): decode(table, name, _ATTRIBUTE, file) for name in table}
    return pd.DataFrame(columns)


def _partition(tree: FileTree, file: str) -> dict[str, str]:
    """The split of every image."""
    table = _read(tree, file, names=["image_id", "partition"])
    return dict(zip(map(str, table.index), splits_of(table.iloc[:, 0], file), strict=True))


def _read(tree: FileTree, file: str, *, names: list[str] | None = None) -> pd.DataFrame:
    """A table by the names of its images, in its first column.

    As text files, values are separated by spaces: that of attributes has a first line with the number of rows, and
    a second one with their names; that of splits, whose columns are `names`, has neither.
    """
    path = tree.path(file)
    if not file.lower().endswith(".txt"):
        table = read_table(path)
    elif names is None:
        with open(path, encoding="utf-8-sig") as lines:
            first = lines.readline().split()
            names, skipped = (lines.readline().split(), 2) if len(first) == 1 else (first, 1)
        table = read_table(path, sep=r"\s+", skiprows=skipped, header=None, names=["image_id", *names])
    else:
        table = read_table(path, sep=r"\s+", header=None, names=names)
    images = [posixpath.basename(str(name)) for name in table.iloc[:, 0]]
    return table.iloc[:, 1:].set_axis(images, axis="index")


def _folder(tree: FileTree, names: Iterable[str]) -> str:
    """The folder of the faces: of those with images of these names, an aligned one, or else that with the most."""
    listed = {stem(name) for name in names}
    found = Counter(posixpath.dirname(file) for file in tree.images if stem(posixpath.basename(file)) in listed)
    return max(found, key=lambda folder: (_ALIGNED in folder.lower(), found[folder], folder), default=_ALIGNED)
