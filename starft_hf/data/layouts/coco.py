"""Captions in the form of COCO: JSON files of images and captions, and folders of the images."""

import json
import posixpath
import re
from collections import Counter, defaultdict
from typing import Any

import pandas as pd

from starft_hf.data.layouts.layout import CAPTION, Layout
from starft_hf.data.layouts.lookup import by_split, joined, stem, with_images
from starft_hf.data.layouts.split_names import TRAIN, split_of
from starft_hf.data.layouts.tree import FileTree


# As COCO names its files: captions_train2017.json, for the images in train2017.
_NAMED = re.compile(r"captions?_(?P<folder>(?P<split>[a-z]+)_?\d*)")
# How much of other files is read to see whether they may be such, of how many: folders with more have one per image.
_BEGINNING, _MOST = 4096, 16
_FIRST_KEY = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(info|images|licenses|annotations|categories|type)"')
# Boxes and masks, which take long to read.
_OTHER = ("instances_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")


def read(tree: FileTree) -> Layout | None:
    """The layout, with a list of the captions of every image in the column "caption"; None for other folders.

    Raises:
        ValueError: if a file is damaged, two are of one split, or most of the images are missing.
    """
    parts: list[pd.DataFrame] = []
    sources: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
    candidates = _candidates(tree)
    usual = {source: named["folder"] if (named := _NAMED.fullmatch(stem(source))) else "" for source in candidates}
    for source in candidates:
        if (captions := _captions(tree, source)) is None:
            continue
        # Images of different splits may have the same names.
        others = {*usual.values()} - {usual[source]}
        if (folder := _folder(tree, list(captions), usual[source], others)) is None:
            # Of COCO, many have the annotations of all splits, and the images of one.
            left_out[source] = "none of its images are here"
            continue
        if named := _NAMED.fullmatch(stem(source)):
            split = split_of(named["split"]) or named["split"]
        else:
            split = split_of(stem(source)) or split_of(posixpath.basename(folder)) or TRAIN
        if split in sources:
            raise ValueError(f"{sources[split][0]} and {source} are both of the split {split!r}; keep one of them")
        files = [joined(folder, name) for name in captions]
        rows, missing = with_images(tree, pd.DataFrame({CAPTION: [*captions.values()], "split": split}), files, source)
        left_out |= missing
        empty = [not several for several in captions.values()]
        left_out |= {file: f"it has no caption in {source}" for file, none in zip(files, empty, strict=True) if none}
        parts.append(rows[rows[CAPTION].map(bool)])
        sources[split] = (source, folder or ".")
    if not parts:
        if left_out:
            raise ValueError(
                f"{str(tree.root)!r} has {', '.join(left_out)}, and none of their images; unpack these beside them, "
                "or pass the folder that has both"
            )
        return None
    return Layout(
        splits=by_split(pd.concat(parts, ignore_index=True)),
        sources=sources,
        left_out=left_out,
    )


def _candidates(tree: FileTree) -> list[str]:
    """The files that may have captions."""
    files = [file for file in tree.files if file.lower().endswith(".json")]
    if named := [file for file in files if _NAMED.fullmatch(stem(file))]:
        return named
    return [file for file in files if not stem(file).startswith(_OTHER)] if len(files) <= _MOST else []


def _captions(tree: FileTree, source: str) -> dict[str, list[str]] | None:
    """The captions of every image by its name; None if the file is of another kind."""
    with open(tree.path(source), "rb") as file:
        if not _FIRST_KEY.match(file.read(_BEGINNING)):
            return None
        file.seek(0)
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{source} is not valid JSON: {error}") from error
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        return None
    if annotations and "caption" not in annotations[0]:
        return None
    found: defaultdict[Any, list[str]] = defaultdict(list)
    try:
        for annotation in annotations:
            if caption := annotation["caption"].strip():
                found[annotation["image_id"]].append(caption)
        return {image["file_name"]: found[image["id"]] for image in images}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source} has an image without file_name and id, or an annotation without image_id and caption ({error})"
        ) from error


def _folder(tree: FileTree, names: list[str], usual: str, others: set[str]) -> str | None:
    """The folder that names of images are relative to: that of the `usual` name, or that with the most of them.

    None if there is none, apart from folders whose names are among `others`.
    """
    listed: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        listed[posixpath.basename(name).lower()].append(name.lower())
    above: Counter[str] = Counter()
    for file in tree.images:
        for name in listed.get(posixpath.basename(file).lower(), ()):
            if f"/{file.lower()}".endswith(f"/{name}"):
                above[file[: len(file) - len(name)].rstrip("/")] += 1
    own = [folder for folder in above if posixpath.basename(folder).lower() not in others]
    return max(own, key=lambda folder: (posixpath.basename(folder).lower() == usual, above[folder]), default=None)
