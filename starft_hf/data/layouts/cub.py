"""CUB-200-2011, and NABirds in its form: text files that number images, classes and which of them are for training."""

import posixpath
import re

import pandas as pd

from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.lookup import by_split, decode, find_files, joined, with_images
from starft_hf.data.layouts.split_names import TEST, TRAIN
from starft_hf.data.layouts.tree import FileTree
from starft_hf.utils.names import distinct_names


IMAGES, LABELS, SPLIT, CLASSES = "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"


def read(tree: FileTree) -> Layout | None:
    """The layout, whose classes are named as in classes.txt without their numbers; None for other folders.

    Raises:
        ValueError: if a file is missing, or does not have the number of every image.
    """
    if not (found := find_files(tree, SPLIT)):
        return None
    folder = posixpath.dirname(found[0])
    sources = [joined(folder, name) for name in (IMAGES, LABELS, SPLIT, CLASSES)]
    if sources[0] not in tree.files:
        return None
    if missing := [file for file in sources if file not in tree.files]:
        raise ValueError(f"{found[0]} and {sources[0]} are those of CUB, but {', '.join(missing)} is missing")
    paths, labels, training, words = (_by_number(tree.path(file)) for file in sources)
    names = [re.sub(r"^\d+\.", "", name).replace("_", " ") for name in words.values()]
    class_of = dict(zip(words, distinct_names(names), strict=True))
    rows = pd.DataFrame({LABEL: pd.Series(labels), "split": pd.Series(training)}).reindex(list(paths))
    rows[LABEL] = decode(rows, LABEL, class_of, sources[1])
    rows["split"] = decode(rows, "split", {"0": TEST, "1": TRAIN}, sources[2])
    files = [joined(folder, f"images/{path}") for path in paths.values()]
    rows, left_out = with_images(tree, rows.reset_index(drop=True), files, sources[0])
    parts = by_split(rows)
    return Layout(
        splits=parts,
        sources=dict.fromkeys(parts, tuple(sources)),
        # Of NABirds, some classes are only groups of others.
        class_names=tuple(name for name in class_of.values() if name in set(rows[LABEL])),
        left_out=left_out,
    )


def _by_number(path: str) -> dict[str, str]:
    """The rest of every line by its first word."""
    with open(path, encoding="utf-8", errors="replace") as file:
        pairs = [line.strip().partition(" ") for line in file if line.strip()]
    return {number: rest for number, _, rest in pairs}
