"""The classes of ImageNet, and of test sets that share them."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from starft_hf.data.imagenet import imagenet_class_names
from starft_hf.evaluation.catalog.classes import ClassSpace


FOLDER_LABELS = "folder_to_objectnet_label.json"
OBJECTNET_FILES = (
    FOLDER_LABELS,
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)

NEEDS_MAPPING = (
    "This package does not include the mapping from ObjectNet's classes to ImageNet's. Its owners publish it in the "
    "folder 'mappings' of objectnet-1.0.zip (objectnet.dev). Pass load_benchmark('objectnet', "
    "classes='path/to/mappings'), or a dictionary from class name to ImageNet indices in label order."
)


def imagenet_classes() -> ClassSpace:
    """All classes of ImageNet."""
    return ClassSpace(imagenet_class_names())


def imagenet_subset(indices: Sequence[int]) -> ClassSpace:
    """A class space whose labels 0, 1, ... are the classes `indices` of ImageNet."""
    names = imagenet_class_names()
    return ClassSpace(tuple(names[index] for index in indices), names, tuple((index,) for index in indices))


def objectnet_missing() -> ClassSpace:
    """Raise an error that says where to find the classes of ObjectNet."""
    raise ValueError(NEEDS_MAPPING)


def read_objectnet_classes(classes: Any) -> ClassSpace:
    """The classes of ObjectNet, from the folder of its mappings, or a dictionary from class name to ImageNet indices.

    Labels are numbered in the order of ObjectNet's folder names, as clip_benchmark numbers them.
    """
    if isinstance(classes, (str, PathLike)):
        classes = _read_mappings(Path(classes))
    if not isinstance(classes, Mapping):
        raise ValueError(f"classes is of type {type(classes).__name__}. {NEEDS_MAPPING}")
    return ClassSpace(tuple(classes), imagenet_class_names(), tuple(map(tuple, classes.values())))


def _read_mappings(folder: Path) -> dict[str, list[int]]:
    paths = [folder / name for name in OBJECTNET_FILES]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"the folder {str(folder)!r} has no {', '.join(missing)}. {NEEDS_MAPPING}")
    # ObjectNet names ImageNet's classes by the lines of the last file; the third file says which line belongs to which
    # of the usual indices.
    label_of, imagenet_of, line_of = (json.loads(path.read_text(encoding="utf-8")) for path in paths[:3])
    lines = [line.strip() for line in paths[3].read_text(encoding="utf-8").splitlines()]
    index_of = {lines[int(line)]: int(index) for index, line in line_of.items()}
    try:
        return {
            label.lower(): [index_of[name] for name in imagenet_of[label].split("; ")]
            for _, label in sorted(label_of.items())
            if label in imagenet_of
        }
    except KeyError as error:
        raise ValueError(
            f"the mappings in {str(folder)!r} name the unknown ImageNet class {error}; download them again"
        ) from error
