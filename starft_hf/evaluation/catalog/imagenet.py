"""ImageNet and the test sets that share its classes: V2, R, A, Sketch and ObjectNet."""

import json
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from starft_hf.evaluation.catalog.classes import ClassSpace
from starft_hf.evaluation.catalog.columns import WEBDATASET_IMAGES, without_border
from starft_hf.evaluation.catalog.entry import BenchmarkEntry, HubSource
from starft_hf.evaluation.catalog.imagenet_names import (
    imagenet_a_classes,
    imagenet_class_names,
    imagenet_classes,
    imagenet_r_classes,
    imagenet_templates,
)


# Pixels that are cut off the images of ObjectNet, which have a red frame.
OBJECTNET_BORDER = 2

OBJECTNET_FILES = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)

NEEDS_MAPPING = (
    "ObjectNet's classes stand for several of ImageNet's, and this package does not carry the mapping. Its owners "
    "publish it in the folder 'mappings' of objectnet-1.0.zip (objectnet.dev). Pass "
    "load_benchmark('objectnet', classes='path/to/mappings'), or a dictionary from class name to ImageNet indices in "
    "label order."
)


def webdataset(repository: str) -> tuple[HubSource, ...]:
    """The test shards of a repository in the form that clip_benchmark writes."""
    return (HubSource(repository, "test", data_files="test/*.tar"),)


def objectnet_missing() -> ClassSpace:
    """Say where the classes of ObjectNet are to be had."""
    raise ValueError(NEEDS_MAPPING)


def read_objectnet_classes(classes: Any) -> ClassSpace:
    """The classes of ObjectNet, out of the folder of mappings that comes with it.

    Labels are numbered in the order of ObjectNet's folder names, as clip_benchmark numbers them.

    Args:
        classes: the folder, or a mapping from class name to indices of ImageNet classes, in label order.

    Raises:
        ValueError: if it is neither, or the files do not fit one another.
        FileNotFoundError: if a file is missing.
    """
    if isinstance(classes, ClassSpace):
        return classes
    if isinstance(classes, (str, PathLike)):
        classes = _read_mappings(Path(classes))
    if not isinstance(classes, Mapping):
        raise ValueError(f"classes is of type {type(classes).__name__}. {NEEDS_MAPPING}")
    return ClassSpace(tuple(classes), imagenet_class_names(), tuple(map(tuple, classes.values())))


def _read_mappings(folder: Path) -> dict[str, list[int]]:
    paths = [folder / name for name in OBJECTNET_FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"the folder {str(folder)!r} has no {', '.join(missing)}. {NEEDS_MAPPING}")
    # ObjectNet names ImageNet's classes by their labels, which stand on the lines of the last file; the third says
    # which line belongs to which of the usual indices.
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
        raise ValueError(f"the mappings in {str(folder)!r} name the unknown ImageNet class {error}") from error


def crop_border(dataset: Any, entry: BenchmarkEntry) -> Any:
    """The images of ObjectNet without their frame."""
    return without_border(dataset, "image", OBJECTNET_BORDER)


IMAGENET = BenchmarkEntry(
    name="imagenet",
    title="ImageNet",
    hub=webdataset("clip-benchmark/wds_imagenet1k"),
    classes=imagenet_classes,
    num_classes=1000,
    templates=imagenet_templates,
    metric="accuracy",
    image_columns=("image", *WEBDATASET_IMAGES),
    label_columns=("label", "cls"),
    rows=50000,
    license_note="non-commercial research and education, on the terms of image-net.org, which a mirror does not lift",
    sources=("arXiv 1409.0575", "clip_benchmark.datasets.builder"),
    notes=(
        "The validation set. Class names and prompts are those of open_clip; two pairs of classes have the same name, "
        "and so the same prompts."
    ),
)

IMAGENET_V2 = replace(
    IMAGENET,
    name="imagenet-v2",
    title="ImageNet-V2",
    hub=webdataset("clip-benchmark/wds_imagenetv2"),
    rows=10000,
    license_note="MIT, as the authors' repository states; the photographs are their makers'",
    sources=("arXiv 1902.10811", "clip_benchmark.datasets.builder"),
    notes="The variant matched-frequency. Class names and prompts are those of open_clip.",
)

IMAGENET_R = replace(
    IMAGENET,
    name="imagenet-r",
    title="ImageNet-R",
    hub=webdataset("clip-benchmark/wds_imagenet-r"),
    classes=imagenet_r_classes,
    num_classes=200,
    rows=30000,
    license_note="see the authors' repository (github.com/hendrycks/imagenet-r); the pictures are their makers'",
    sources=("arXiv 2006.16241", "clip_benchmark.datasets.builder"),
    notes="Over 200 of the 1,000 classes: a classifier of all of them is sliced to these.",
)

IMAGENET_A = replace(
    IMAGENET_R,
    name="imagenet-a",
    title="ImageNet-A",
    hub=webdataset("clip-benchmark/wds_imagenet-a"),
    classes=imagenet_a_classes,
    rows=7500,
    license_note="MIT, as the authors' repository states; the photographs are their makers'",
    sources=("arXiv 1907.07174", "clip_benchmark.datasets.builder"),
)

IMAGENET_SKETCH = replace(
    IMAGENET,
    name="imagenet-sketch",
    title="ImageNet-Sketch",
    hub=webdataset("clip-benchmark/wds_imagenet_sketch"),
    rows=50889,
    license_note="MIT, as the authors' repository states; the drawings are their makers'",
    sources=("arXiv 1905.13549", "clip_benchmark.datasets.builder"),
    notes="Class names and prompts are those of open_clip.",
)

OBJECTNET = replace(
    IMAGENET,
    name="objectnet",
    title="ObjectNet",
    hub=webdataset("clip-benchmark/wds_objectnet"),
    classes=objectnet_missing,
    num_classes=113,
    steps=(crop_border,),
    rows=18574,
    read_classes=read_objectnet_classes,
    license_note="on the terms of objectnet.dev, which forbid to train or tune on it",
    sources=("Barbu et al., NeurIPS 2019", "arXiv 2109.01903", "clip_benchmark.datasets.objectnet"),
    notes=(
        "classes: the folder 'mappings' of objectnet-1.0.zip, or a dictionary from class name to ImageNet indices in "
        "label order. Of the ImageNet classes that a label stands for, the best counts. Two pixels are cut off every "
        "side. A widely used copy held half of the images."
    ),
)

ENTRIES = (IMAGENET, IMAGENET_V2, IMAGENET_R, IMAGENET_A, IMAGENET_SKETCH, OBJECTNET)
