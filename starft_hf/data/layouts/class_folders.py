"""Images in one folder per class, within one folder per split or without splits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pandas as pd

from starft_hf.data.layouts.layout import IMAGE, LABEL, Layout
from starft_hf.data.layouts.split_names import TRAIN, names_a_split, split_of
from starft_hf.data.layouts.tree import FileTree


NO_CLASS = "it lies in no class folder"

# The images directly in a folder under "", and those below each of its folders under their names.
Folder = dict[str, list[str]]


def folder_of(images: Sequence[str], prefix: str) -> Folder:
    """Images by the folders of the folder `prefix` that they lie in; `prefix` is empty or ends with a slash."""
    found = defaultdict(list)
    for image in images:
        name, slash, _ = image[len(prefix) :].partition("/")
        found[name if slash else ""].append(image)
    return dict(found)


def top_folder(images: Sequence[str]) -> str:
    """Where splits or classes begin: below folders that only wrap another one, as in unpacked archives."""
    prefix = ""
    while len(folder := folder_of(images, prefix)) == 1 and "" not in folder:
        (name,) = folder
        inner = folder_of(images, f"{prefix}{name}/")
        holds_splits = any(split_of(child) and _is_nested(inner[child], f"{prefix}{name}/{child}/") for child in inner)
        if "" in inner or (names_a_split(name) and not holds_splits):
            break
        prefix += f"{name}/"
    return prefix


def split_folders(images: Sequence[str]) -> dict[str, str]:
    """The split of every folder that is one, by its path with a slash at its end; empty if there are only classes.

    Folders that hold class folders are splits if the name of one of them says so, or if they have classes in common.
    Words in the names of classes never count, as in a class "train" beside classes "bus" and "car".
    """
    top = top_folder(images)
    folder = folder_of(images, top)
    nested = [name for name in folder if name and _is_nested(folder[name], f"{top}{name}/")]
    classes = [folder_of(folder[name], f"{top}{name}/").keys() - {""} for name in nested]
    shared = any(first & second for place, first in enumerate(classes) for second in classes[:place])
    are_all = len(nested) == len(folder.keys() - {""})
    if not any(map(names_a_split, nested)) and not (shared and are_all):
        return {}
    return {f"{top}{name}/": split for name, split in _names_of_splits(nested).items()}


def _is_nested(images: Sequence[str], prefix: str) -> bool:
    """Whether some of the images below `prefix` lie in folders of it."""
    return any("/" in image[len(prefix) :] for image in images)


def _names_of_splits(folders: Sequence[str]) -> dict[str, str]:
    """What splits in these folders are called: by what their names mean, or by these where two mean the same."""
    names: dict[str, str] = {}
    # A folder called by the very name of a split is first.
    for folder in sorted(folders, key=lambda folder: (folder.lower() != split_of(folder), folder)):
        meant = split_of(folder) or folder
        names[folder] = folder if meant in names.values() else meant
    return {folder: names[folder] for folder in folders}


def class_of(image: str, splits: Mapping[str, str], top: str) -> str | None:
    """The class of an image: the first folder below that of its split, or below `top`; None without one."""
    prefix = next((folder for folder in splits if image.startswith(folder)), top)
    name, slash, _ = image[len(prefix) :].partition("/")
    return name if slash else None


def read(tree: FileTree) -> Layout | None:
    """Images in class folders, at any depth within them, as for torchvision's `ImageFolder`."""
    images = tree.images
    top, splits = top_folder(images), split_folders(images)
    folder = folder_of(images, top)
    if not splits:
        names = folder.keys() - {""}
        if len(names) < 2 or all(map(names_a_split, names)):
            return None
        rows = _rows(tree, folder)
        left_out = dict.fromkeys(folder.get("", ()), NO_CLASS)
        return Layout("class folders", {TRAIN: rows}, {TRAIN: (top or ".",)}, left_out=left_out)
    rows_of, left_out = {}, {}
    for name, found in folder.items():
        prefix = f"{top}{name}/"
        inner = folder_of(found, prefix) if prefix in splits else {"": found}
        left_out |= dict.fromkeys(inner.get("", ()), NO_CLASS)
        if prefix in splits:
            rows_of[splits[prefix]] = _rows(tree, inner)
    sources = {split: (prefix,) for prefix, split in splits.items()}
    return Layout("class folders by split", rows_of, sources, left_out=left_out)


def _rows(tree: FileTree, folder: Folder) -> pd.DataFrame:
    pairs = [(tree.path(image), name) for name, images in folder.items() if name for image in images]
    return pd.DataFrame(pairs, columns=[IMAGE, LABEL])
