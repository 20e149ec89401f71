"""Waterbirds as its authors and WILDS distribute it: metadata.csv beside folders of images."""

import posixpath

from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.lookup import by_split, decode, find_files, joined, read_columns, splits_of, with_images
from starft_hf.data.layouts.tree import FileTree


TABLE = "metadata.csv"
COLUMNS = ("img_filename", "y", "split", "place")
CLASSES = ("landbird", "waterbird")
PLACES = ("land", "water")


def read(tree: FileTree) -> Layout | None:
    """The layout, with landbirds and waterbirds as classes, and "land" or "water" in the column "place"."""
    found = find_files(tree, TABLE)
    if len(found) != 1 or found[0].count("/") > 1 or (table := read_columns(tree.path(found[0]), COLUMNS)) is None:
        return None
    if not {*table["y"].dropna(), *table["place"].dropna()} <= {0, 1}:
        # Another benchmark in the form of this one.
        return None
    source = found[0]
    table[LABEL] = decode(table, "y", dict(enumerate(CLASSES)), source)
    table["place"] = decode(table, "place", dict(enumerate(PLACES)), source)
    table["split"] = splits_of(table["split"], source)
    files = [joined(posixpath.dirname(source), name) for name in table["img_filename"]]
    rows, left_out = with_images(tree, table[[LABEL, "place", "split"]], files, source)
    parts = by_split(rows)
    return Layout(
        splits=parts,
        sources=dict.fromkeys(parts, (source,)),
        class_names=CLASSES,
        group_columns=(LABEL, "place"),
        left_out=left_out,
    )
