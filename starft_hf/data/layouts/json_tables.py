"""JSON files that list images: records, or images, annotations and categories in the form of COCO."""

import json
import posixpath
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from starft_hf.data.layouts.tables import of_one_type


ENDING = ".json"
# How many are looked at: folders with more have one for every image.
_MOST = 16
# Boxes and masks of objects, of which images have several, as COCO names its files.
_OBJECTS = re.compile(r"instances_|person_keypoints_|stuff_|panoptic_|image_info_")
_BEGINNING = re.compile(r"\s*(?:\[\s*\{|\{\s*\"(?:info|images|licenses|annotations|categories|type)\")")


def json_tables(files: Sequence[str]) -> list[str]:
    """The files that may list images, by their names."""
    found = [file for file in files if file.lower().endswith(ENDING)]
    return [file for file in found if not _OBJECTS.match(posixpath.basename(file))] if len(found) <= _MOST else []


def read_json(path: str) -> pd.DataFrame | None:
    """The records of a list; or the images, each with the names of its categories in "label"; None for other files.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            if not _BEGINNING.match(file.read(4096)):
                return None
            file.seek(0)
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"the table {path!r} cannot be read: {error}") from error
    try:
        return _rows_of(content, path)
    except UnicodeEncodeError as error:
        # JSON may escape what UTF-8 cannot hold.
        raise ValueError(f"the table {path!r} cannot be read: {error}") from error


def _rows_of(content: Any, path: str) -> pd.DataFrame | None:
    if isinstance(content, list):
        return pd.DataFrame(content).apply(of_one_type) if all(isinstance(row, dict) for row in content) else None
    parts = [content.get(name) for name in ("images", "annotations", "categories")]
    if not all(isinstance(part, list) for part in parts) or "category_id" not in next(
        iter(content["annotations"]), {}
    ):
        return None
    try:
        return _of_coco(*parts)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path!r} has an image without id and file_name, an annotation without image_id and category_id, or a "
            f"category without id and name ({error})"
        ) from error


def _of_coco(images: Any, annotations: Any, categories: Any) -> pd.DataFrame:
    names = {category["id"]: category["name"] for category in categories}
    pairs = [(annotation["image_id"], names[annotation["category_id"]]) for annotation in annotations]
    labels = pd.DataFrame(pairs, columns=["id", "label"]).drop_duplicates()
    # What else is known of images, such as the place of a camera.
    kept = [name for name in images[0] if isinstance(images[0][name], (str, int, float)) and name != "id"]
    rows = [
        {"id": image["id"], "file_name": image["file_name"], **{n: image.get(n) for n in kept}} for image in images
    ]
    return pd.DataFrame(rows).merge(labels, on="id", how="left").drop(columns="id").apply(of_one_type)
