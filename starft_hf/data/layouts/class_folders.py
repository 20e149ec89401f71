"""Images in one folder per class, within one folder per split or without splits."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from starft_hf.data.layouts.layout import IMAGE, LABEL, Layout
from starft_hf.data.layouts.split_names import TRAIN, names_a_split, split_in, split_of
from starft_hf.data.layouts.tree import FileTree


NO_CLASS = "it lies in no class folder"

# What folders of images of all classes are called, and words in the names of parts of them.
_HOLDERS = {"images", "image", "imgs", "img", "jpegimages", "jpegs", "jpeg", "jpgs", "jpg", "pngs", "png"}
_PARTS = {"part", "batch", "chunk", "folder", "archive", "shard"}

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
    while "" not in (folder := folder_of(images, prefix)) and (name := _wrapped(folder, prefix)) is not None:
        inner = folder_of(folder[name], f"{prefix}{name}/")
        holds_splits = any(split_of(child) and _is_nested(inner[child], f"{prefix}{name}/{child}/") for child in inner)
        if "" in inner or (names_a_split(name) and not holds_splits):
            break
        prefix += f"{name}/"
        images = folder[name]
    return prefix


def _wrapped(folder: Folder, prefix: str) -> str | None:
    """The only folder of a folder, or the one of its images beside others, as in "images" beside "annotations"."""
    if len(folder) == 1:
        return next(iter(folder))
    found = [name for name in folder if _holds_images(name) and _is_nested(folder[name], f"{prefix}{name}/")]
    return found[0] if len(found) == 1 and not any(map(split_of, folder)) else None


def _unwrapped(images: Sequence[str], prefix: str) -> str:
    """Where the classes of a folder begin: below one of the same name, as in "seg_train/seg_train", or "images"."""
    own = prefix.rstrip("/").rpartition("/")[2].lower()
    while len(folder := folder_of(images, prefix)) == 1:
        (name,) = folder
        if not (name and (name.lower() == own or _holds_images(name) or split_of(name))):
            break
        prefix += f"{name}/"
    return prefix


def split_folders(images: Sequence[str]) -> dict[str, str]:
    """The split of every folder that is one, by its path with a slash at its end; empty if there are only classes.

    Folders that hold class folders are splits if the name of one of them says so, or if they have classes in common.
    Words in the names of classes never count, as in a class "train" beside classes "bus" and "car".
    """
    top = top_folder(images)
    folder = folder_of([image for image in images if image.startswith(top)], top)
    starts = {name: _unwrapped(folder[name], f"{top}{name}/") for name in folder if name}
    nested = [name for name, start in starts.items() if _is_nested(folder[name], start)]
    several = [name for name in nested if _holds_splits(folder[name], starts[name])]
    nested = [name for name in nested if name not in several] or nested
    classes = [folder_of(folder[name], starts[name]).keys() - {""} for name in nested]
    shared = any(first & second for place, first in enumerate(classes) for second in classes[:place])
    if len(several) == len(starts) > 1:
        raise ValueError(
            f"the folders {', '.join(map(repr, several[:4]))} each have splits of their own; pass one of them as the "
            "dataset"
        )
    if all(map(split_of, set().union(*classes))) and not any(map(names_a_split, nested)):
        # Splits within class folders, as in owl/train/1.jpg.
        return {}
    if len(several) == 1 and nested != several and not any(split_in(name) == TRAIN for name in nested):
        # A test set beside a folder with the other splits.
        inner = split_folders([image for image in images if image.startswith(starts[several[0]])])
        outer = {starts[name]: split for name, split in _names_of_splits(list(filter(names_a_split, nested))).items()}
        return {prefix: split for prefix, split in outer.items() if split not in inner.values()} | inner
    if not any(map(names_a_split, nested)):
        if len(several) == 1:
            return split_folders([image for image in images if image.startswith(starts[several[0]])])
        # What all of several folders share may be one folder in each class, as in owl/photos/1.jpg, fern/photos/2.jpg.
        if not (shared and len(nested) == len(starts) and len(set().union(*classes)) > 1):
            return {}
    return {starts[name]: split for name, split in _names_of_splits(nested).items()}


def _is_nested(images: Sequence[str], prefix: str) -> bool:
    """Whether some of the images below `prefix` lie in folders of it."""
    return any("/" in image[len(prefix) :] for image in images)


def _holds_splits(images: Sequence[str], prefix: str) -> bool:
    """Whether all folders of the folder `prefix` are splits, as in a copy of the data that an archive also has."""
    folder = folder_of(images, prefix)
    return all(split_of(name) and _is_nested(folder[name], f"{prefix}{name}/") for name in folder)


def _holds_images(name: str) -> bool:
    return name.lower() in _HOLDERS


def are_classes(names: Iterable[str]) -> bool:
    """Whether folders of these names may be classes, rather than "images" and "masks", or parts of an archive."""
    names = set(names)
    kinds = {re.sub(r"\d+", "", name.lower()) for name in names}
    words = {word for kind in kinds for word in re.split(r"[\W_]+", kind)}
    are_parts = len(kinds) == 1 and not words.isdisjoint({*_HOLDERS, *_PARTS})
    return not any(map(_holds_images, names)) and not are_parts


def _names_of_splits(folders: Sequence[str]) -> dict[str, str]:
    """What splits in these folders are called: by what their names mean, or by these where two mean the same."""
    names: dict[str, str] = {}
    # A folder called by the very name of a split is first.
    for folder in sorted(folders, key=lambda folder: (folder != split_of(folder), folder.lower() != split_of(folder))):
        meant = split_of(folder) or folder
        names[folder] = folder if meant in names.values() else meant
    return {folder: names[folder] for folder in folders}


def class_of(image: str, splits: Mapping[str, str], top: str) -> str | None:
    """The class of an image: the first folder below that of its split, or below `top`; None without one."""
    prefix = next((folder for folder in splits if image.startswith(folder)), top)
    name, slash, _ = image[len(prefix) :].partition("/")
    return name if slash else None


def _splits_in_classes(tree: FileTree) -> Layout | None:
    """Images in folders of splits within class folders, as in owl/train/1.jpg; None if they are not in such."""
    top = top_folder(tree.images)
    folder = folder_of([image for image in tree.images if image.startswith(top)], top)
    folder.pop("", None)
    parts = {name: folder_of(images, f"{top}{name}/") for name, images in folder.items()}
    splits = {part for inner in parts.values() for part in inner}
    if len(folder) < 2 or not are_classes(folder):
        return None
    if not all(map(split_of, splits)):
        divided = [name for name, inner in parts.items() if len({*map(split_of, inner)} - {None}) == len(inner) > 1]
        rest = [name for name in parts if name not in divided and not split_of(name)]
        flat = not any(
            _is_nested(parts[name][part], f"{top}{name}/{part}/") for name in divided for part in parts[name]
        )
        if divided and rest and flat and not any(map(split_of, divided)):
            raise ValueError(
                f"the class folder {divided[0]!r} has the splits {', '.join(parts[divided[0]])}, and {rest[0]!r} does "
                "not: divide all of them in the same way"
            )
        return None
    if any(_is_nested(inner[part], f"{top}{name}/{part}/") for name, inner in parts.items() for part in inner):
        return None
    if all(map(split_of, folder)):
        return None
    named = _names_of_splits(sorted(splits))
    rows, sources = {}, {}
    for part, split in named.items():
        rows[split] = _rows(tree, {name: inner.get(part, []) for name, inner in parts.items()})
        sources[split] = tuple(f"{top}{name}/{part}/" for name, inner in parts.items() if part in inner)
    return Layout(rows, sources)


def read(tree: FileTree) -> Layout | None:
    """Images in class folders, at any depth within them, as for torchvision's `ImageFolder`."""
    if (found := _splits_in_classes(tree)) is not None:
        return found
    top, splits = top_folder(tree.images), split_folders(tree.images)
    if not splits:
        folder = folder_of([image for image in tree.images if image.startswith(top)], top)
        names = folder.keys() - {""}
        if len(names) < 2 or all(map(names_a_split, names)) or not are_classes(names):
            return None
        return Layout({TRAIN: _rows(tree, folder)}, {TRAIN: (top or ".",)})
    rows_of = {}
    for prefix, split in splits.items():
        folder = folder_of([image for image in tree.images if image.startswith(prefix)], prefix)
        rows_of[split] = _rows(tree, folder if are_classes(folder.keys() - {""}) else {})
    if not any(map(len, rows_of.values())):
        return None
    sources: dict[str, tuple[str, ...]] = {split: (prefix,) for prefix, split in splits.items()}
    if TRAIN not in rows_of and (beside := _beside(tree.images, top, rows_of)):
        rows_of[TRAIN], sources[TRAIN] = _rows(tree, beside), tuple(f"{top}{name}/" for name in beside)
    return Layout(rows_of, sources, left_out=_of_copies(tree.images, top, splits))


def _beside(images: Sequence[str], top: str, rows_of: Mapping[str, pd.DataFrame]) -> Folder:
    """The class folders of the training set that lie beside those of other splits, as in owl/1.jpg, test/owl/2.jpg."""
    folder = folder_of([image for image in images if image.startswith(top)], top)
    classes = {label for rows in rows_of.values() for label in rows[LABEL]}
    return {name: found for name, found in folder.items() if name in classes}


def _of_copies(images: Sequence[str], top: str, splits: Mapping[str, str]) -> dict[str, str]:
    """Why images in folders that hold splits themselves, beside those that are read, are left out."""
    others = [image for image in images if image.startswith(top) and not image.startswith(tuple(splits))]
    folder = folder_of(others, top)
    copies = {
        name: f"the folder {name} has splits of its own"
        for name in folder
        if name and _holds_splits(folder[name], f"{top}{name}/")
    }
    # Of splits in one of several folders, what lies in the others is another version of the data.
    if len({prefix[len(top) :].partition("/")[0] for prefix in splits}) == 1 < len(splits):
        copies |= {
            name: f"the folder {name} has no splits, as another one has" for name in folder if name not in copies
        }
    return {image: why for name, why in copies.items() for image in folder[name]}


def _rows(tree: FileTree, folder: Folder) -> pd.DataFrame:
    pairs = [(tree.path(image), name) for name, images in folder.items() if name for image in images]
    return pd.DataFrame(pairs, columns=[IMAGE, LABEL])
