"""Folders of images as img2dataset writes them: `00000/000000001.jpg` with its caption in `.txt` and `.json`."""

import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from starft_hf.data.image_formats import is_image
from starft_hf.data.layouts.layout import CAPTION, IMAGE, LABEL, Layout
from starft_hf.data.layouts.split_names import TRAIN, split_of
from starft_hf.data.layouts.tree import FileTree
from starft_hf.data.shards import fields
from starft_hf.data.shards.sets import without_metadata_of_shards


# What it writes beside every folder.
_STATISTICS = re.compile(r"(.*\d)_stats\.json")


def read(tree: FileTree) -> Layout | None:
    """The images of the folders that have statistics such as `00000_stats.json` beside them.

    All are the split "train", unless the first folder is called "test" or the like. Images that img2dataset marks as
    failed are skipped.
    """
    folders = {match[1] for file in tree.files if (match := _STATISTICS.fullmatch(file))}
    files = [file for file in tree.files if os.path.dirname(file) in folders]
    images = {os.path.splitext(file)[0]: file for file in files if is_image(file)}
    if not images:
        return None
    present = set(files)
    rows: dict[str, list[fields.Row]] = {}
    left_out = without_metadata_of_shards(tree.files)[1]
    for stem in dict.fromkeys(os.path.splitext(file)[0] for file in files):
        try:
            row = _fields(tree, stem, present)
        except fields.NoSampleError as reason:
            left_out[images.get(stem, f"{stem}.json")] = str(reason)
            continue
        if stem in images:
            rows.setdefault(_split(stem), []).append({**row, IMAGE: tree.path(images[stem])})
    failed = Counter(reason for reason in left_out.values() if reason.startswith("its status"))
    sources = {split: tuple(sorted(folder for folder in folders if _split(f"{folder}/") == split)) for split in rows}
    return Layout(
        splits={split: pd.DataFrame(own) for split, own in rows.items()},
        sources=sources,
        left_out=left_out,
        notes=tuple(f"{number} samples are skipped: {reason}." for reason, number in failed.most_common()),
    )


def _split(file: str) -> str:
    first, _, rest = file.partition("/")
    return (split_of(first) if "/" in rest else None) or TRAIN


def _fields(tree: FileTree, stem: str, files: set[str]) -> fields.Row:
    row: fields.Row = {}
    if f"{stem}.json" in files:
        row = fields.fields_of_json(_text(tree, f"{stem}.json"), f"{stem}.json", LABEL)
    if fields.LABEL in row:
        row[LABEL] = row.pop(fields.LABEL)
    if f"{stem}.txt" in files:
        row[CAPTION] = _text(tree, f"{stem}.txt")
    return row


def _text(tree: FileTree, file: str) -> str:
    try:
        return Path(tree.path(file)).read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file!r} is not text in UTF-8 ({error}); write it anew") from error
