"""ImageNet as Kaggle and image-net.org distribute it: ILSVRC/Data/CLS-LOC, with the tables beside it."""

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from starft_hf.data.imagenet import SYNSET_FILE, are_wordnet_ids, names_of_ids
from starft_hf.data.layouts.layout import IMAGE, LABEL, Layout
from starft_hf.data.layouts.lookup import find_files, stem
from starft_hf.data.layouts.split_names import TEST, TRAIN, VALIDATION
from starft_hf.data.layouts.tables import read_table
from starft_hf.data.layouts.tree import FileTree


SOLUTION = "LOC_val_solution.csv"
# The column with the WordNet ids of the classes.
WORDNET_ID = "wordnet_id"

_FOLDER = "CLS-LOC"
_SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


def read(tree: FileTree) -> Layout | None:
    """The layout, with classes in the order of their WordNet ids, which are in the column "wordnet_id".

    A flat validation set has the labels of LOC_val_solution.csv, in the folder or up to three folders above CLS-LOC.

    Raises:
        ValueError: if that table is damaged, or no image has a label.
    """
    if (place := _place(tree)) is None:
        return None
    ids_of: dict[str, dict[str, str]] = {}
    sources: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    for folder, split in _SPLITS.items():
        ids, flat = _by_folder(tree, f"{place}{folder}/")
        if ids and not are_wordnet_ids([*{*ids.values()}]):
            # Classes with other names, which are those of the folders.
            return None
        sources[split], why = (f"{place}{folder}",), "it has no label"
        if flat and split == VALIDATION:
            why = f"there is no {SOLUTION}, which has its label"
            if (solution := _solution(tree, place)) is not None:
                why = f"{SOLUTION} does not have its label"
                label_of = _read_solution(solution)
                ids |= {file: label_of[stem(file)] for file in flat if stem(file) in label_of}
                sources[split] += (os.path.relpath(solution, tree.root).replace(os.sep, "/"),)
        left_out |= {file: why for file in flat if file not in ids}
        if ids:
            ids_of[split] = ids
    if not ids_of:
        if left_out:
            file, why = next(iter(left_out.items()))
            raise ValueError(f"no image in {str(tree.root)!r} has a label: of {file}, {why}")
        return None
    names = sorted({wordnet_id for ids in ids_of.values() for wordnet_id in ids.values()})
    words = names_of_ids(names, Path(tree.path(place or ".")))
    unnamed = f"Classes have their WordNet ids as names: there is no {SYNSET_FILE}, which names all of them."
    name_of = dict(zip(names, words or names, strict=True))
    return Layout(
        splits={split: _rows(tree, ids, name_of) for split, ids in ids_of.items()},
        sources={split: sources[split] for split in ids_of},
        class_names=tuple(name_of.values()),
        left_out=left_out,
        notes_on_labels=() if words else (unnamed,),
    )


def _by_folder(tree: FileTree, split: str) -> tuple[dict[str, str], list[str]]:
    """The images in the class folders of a split with the names of these, and those beside such folders."""
    depth = split.count("/")
    below = [file for file in tree.images if file.startswith(split)]
    named = {file: file.split("/")[depth] for file in below if file.count("/") == depth + 1}
    return named, [file for file in below if file.count("/") == depth]


def _rows(tree: FileTree, ids: Mapping[str, str], name_of: Mapping[str, str]) -> pd.DataFrame:
    labels = [name_of[wordnet_id] for wordnet_id in ids.values()]
    return pd.DataFrame({IMAGE: list(map(tree.path, ids)), LABEL: labels, WORDNET_ID: list(ids.values())})


def _place(tree: FileTree) -> str | None:
    """The path of the folder CLS-LOC, with a slash at its end if it is not the root; None if there is none."""
    if tree.root.name == _FOLDER:
        return ""
    for file in tree.images:
        above, found, _ = f"/{file}".partition(f"/{_FOLDER}/")
        if found:
            return f"{above}/{_FOLDER}/".lstrip("/")
    return None


def _solution(tree: FileTree, place: str) -> Path | None:
    """The table of the labels of the validation set, in the tree or up to three folders above CLS-LOC."""
    if found := find_files(tree, SOLUTION):
        return Path(tree.path(found[0]))
    folder = Path(tree.path(place or "."))
    return next((path for above in folder.parents[:3] if (path := above / SOLUTION).is_file()), None)


def _read_solution(path: Path) -> Mapping[str, str]:
    """The WordNet id of every image of the validation set, by its name without ending, in lower case."""
    table = read_table(path)
    if not {"ImageId", "PredictionString"} <= set(table.columns):
        raise ValueError(f"{str(path)!r} has the columns {list(table.columns)}; expected ImageId and PredictionString")
    # Of an image, the class and the box of every object, which are all of one class.
    ids = [str(objects).split()[0] for objects in table["PredictionString"]]
    if not are_wordnet_ids(ids):
        raise ValueError(f"column 'PredictionString' of {str(path)!r} holds rows that do not begin with a WordNet id")
    return {stem(str(name)): wordnet_id for name, wordnet_id in zip(table["ImageId"], ids, strict=True)}
