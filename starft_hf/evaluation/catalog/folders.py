"""Benchmarks in folders, as their authors distribute them."""

import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from starft_hf.data.imagenet import imagenet_ids
from starft_hf.data.layouts import FileTree, Layout, celeba, imagenet_tree, waterbirds, wilds
from starft_hf.data.layouts.layout import IMAGE, LABEL
from starft_hf.data.layouts.split_names import TEST
from starft_hf.evaluation.catalog.classes import ClassSpace
from starft_hf.evaluation.catalog.imagenet import FOLDER_LABELS, read_objectnet_classes
from starft_hf.utils.names import unknown_name


Splits = Mapping[str, pd.DataFrame]
# Of a benchmark whose domains one divides oneself.
ALL = "all"

_PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
_MAPPINGS = "mappings"


@dataclass(frozen=True)
class FolderReader:
    """How a benchmark is read from a folder.

    Attributes:
        read: gives for every split a table with the paths of images, their labels, as names or indices, and groups;
            None if the files are others. Its second argument are the classes of the benchmark.
        holds: what the folder has to hold, for messages.
        classes: reads the classes from the folder, where this package does not have them.
    """

    read: Callable[[FileTree, ClassSpace], Splits | None]
    holds: str
    classes: Callable[[Path], ClassSpace] | None = None

    def splits(self, root: Path, classes: ClassSpace) -> Splits:
        """The rows of every split; a ValueError that says what is wrong if the folder does not hold the benchmark."""
        found = self.read(FileTree(root), classes)
        if not found:
            raise ValueError(f"expected {self.holds}")
        return found


def _laid_out(read: Callable[[FileTree], Layout | None]) -> Callable[[FileTree, ClassSpace], Splits | None]:
    def splits(tree: FileTree, classes: ClassSpace) -> Splits | None:
        layout = read(tree)
        return None if layout is None else layout.splits

    return splits


def _iwildcam(tree: FileTree, classes: ClassSpace) -> Splits | None:
    if (layout := wilds.read_iwildcam(tree)) is None:
        return None
    # The classes may have been passed by other names, in the same order.
    index_of = {name: index for index, name in enumerate(layout.class_names or ())}
    return {split: rows.assign(**{LABEL: rows[LABEL].map(index_of)}) for split, rows in layout.splits.items()}


def _iwildcam_classes(root: Path) -> ClassSpace:
    return ClassSpace(wilds.iwildcam_classes(str(_below(root, wilds.IWILDCAM_CLASSES))))


def _imagenet(tree: FileTree, classes: ClassSpace) -> Splits | None:
    if (layout := imagenet_tree.read(tree)) is None:
        return None
    index_of = _index_of_ids(classes)
    return {
        split: rows.assign(**{LABEL: [_index(name, index_of) for name in rows[imagenet_tree.WORDNET_ID]]})
        for split, rows in layout.splits.items()
    }


def _by_wordnet_id(tree: FileTree, classes: ClassSpace) -> Splits | None:
    return _class_folders(tree, _index_of_ids(classes))


def _by_number(tree: FileTree, classes: ClassSpace) -> Splits | None:
    return _class_folders(tree, {str(index): index for index in range(len(classes.names))})


def _index_of_ids(classes: ClassSpace) -> dict[str, int]:
    """The labels of WordNet ids, in a benchmark of all classes of ImageNet or of some."""
    ids = imagenet_ids()
    used = [indices[0] for indices in classes.mapping] or range(len(ids))
    return {ids[index]: label for label, index in enumerate(used)}


def _class_folders(tree: FileTree, index_of: Mapping[str, int]) -> Splits | None:
    """Images in folders of classes, all of which are in one folder."""
    folders = {file: posixpath.dirname(file) for file in tree.images if "/" in file}
    above = {posixpath.dirname(folder) for folder in folders.values() if posixpath.basename(folder) in index_of}
    if not above:
        return None
    if len(above) > 1:
        raise ValueError(f"there are folders of classes in {' and in '.join(sorted(above))}; pass one")
    labels = {file: _index(posixpath.basename(folder), index_of) for file, folder in folders.items()}
    return {TEST: pd.DataFrame({IMAGE: list(map(tree.path, labels)), LABEL: list(labels.values())})}


def _index(name: str, index_of: Mapping[str, int]) -> int:
    if name not in index_of:
        raise ValueError(f"a folder of images has the name of an {unknown_name('class', name, index_of)}")
    return index_of[name]


def _objectnet(tree: FileTree, classes: ClassSpace) -> Splits | None:
    names = json.loads((_below(tree.root, _MAPPINGS) / FOLDER_LABELS).read_text(encoding="utf-8"))
    index_of = {name: index for index, name in enumerate(classes.names)}
    rows = [(file, names.get(posixpath.basename(posixpath.dirname(file)), "").lower()) for file in tree.images]
    # Most folders are of classes that ImageNet does not have.
    rows = [(tree.path(file), index_of[name]) for file, name in rows if name in index_of]
    return {TEST: pd.DataFrame(rows, columns=[IMAGE, LABEL])} if rows else None


def _objectnet_classes(root: Path) -> ClassSpace:
    return read_objectnet_classes(_below(root, _MAPPINGS))


def _pacs(tree: FileTree, classes: ClassSpace) -> Splits | None:
    parts = [(tree.path(file), file.split("/")[-3:]) for file in tree.images if file.count("/") > 1]
    rows = [(path, name, domain) for path, (domain, name, _) in parts if domain in _PACS_DOMAINS]
    return {ALL: pd.DataFrame(rows, columns=[IMAGE, LABEL, "domain"])} if rows else None


def _below(root: Path, name: str) -> Path:
    """A file or a folder of the root, or of a folder in it."""
    found = next((path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{str(root)!r} has no {name}, and no folder in it has; pass the folder that has it")
    return found


_CLASS_FOLDERS = "a folder for each class, called by its"

FOLDERS = {
    "waterbirds": FolderReader(
        _laid_out(waterbirds.read), "metadata.csv with the columns img_filename, y, split and place, beside its images"
    ),
    "celeba": FolderReader(
        _laid_out(celeba.read), "list_attr_celeba and list_eval_partition, as .csv or .txt, and img_align_celeba"
    ),
    "iwildcam": FolderReader(
        _iwildcam, "metadata.csv, categories.csv and the images in train, as in iwildcam_v2.0", _iwildcam_classes
    ),
    "fmow": FolderReader(
        _laid_out(wilds.read_fmow), "rgb_metadata.csv, country_code_mapping.csv and images, as in fmow_v1.1"
    ),
    "imagenet": FolderReader(_imagenet, "CLS-LOC with train and val, and LOC_val_solution.csv if val is flat"),
    "imagenet-v2": FolderReader(_by_number, f"{_CLASS_FOLDERS} index, 0 to 999"),
    **dict.fromkeys(
        ("imagenet-r", "imagenet-a", "imagenet-sketch"), FolderReader(_by_wordnet_id, f"{_CLASS_FOLDERS} WordNet id")
    ),
    "objectnet": FolderReader(_objectnet, "the folders images and mappings of objectnet-1.0", _objectnet_classes),
    "pacs": FolderReader(_pacs, f"{', '.join(_PACS_DOMAINS)}, each with a folder for each class"),
}
