"""What files beside an image say of it: labels and captions in text or JSON."""

import json
import re
from typing import Any

from starft_hf.data.shards.sets import LABELS


Row = dict[str, Any]

# What is known of a sample; fields of JSON may be called "image" and "label" as well.
IMAGE, LABEL, CAPTION = "__image__", "__label__", "caption"

_CAPTIONS = ("caption", "text")
_WHOLE = re.compile(r"0|-?[1-9]\d*")
_SUCCESS = "success"


class NoSampleError(ValueError):
    """Files of one name that are left out; the message says why."""


def label_of_text(text: str) -> int | str | None:
    """The label that a text file holds: a whole number, or a word; None if it is empty."""
    return int(text) if _WHOLE.fullmatch(text) else text or None


def fields_of_json(text: str, where: str, label_column: str) -> Row:
    """The numbers, booleans and strings of a JSON file by name, with its label and its caption or captions.

    Raises:
        NoSampleError: if img2dataset marks the sample as failed.
        ValueError: if `where`, the file, is not JSON or has several labels.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where!r} is not JSON ({error}); write it anew") from error
    if not isinstance(content, dict):
        return {}
    row: Row = {name: value for name, value in content.items() if isinstance(value, (str, int, float))}
    if row.get("status", _SUCCESS) != _SUCCESS:
        raise NoSampleError(f"its status is {row['status']!r}")
    for name in (label_column, *LABELS):
        if isinstance(content.get(name), (list, dict)):
            raise ValueError(f"{where!r} has several labels under {name!r}, and classes must exclude each other")
        if name in row:
            row[LABEL] = row.pop(name)
            break
    for name in _CAPTIONS:
        captions = content.get(name)
        if isinstance(captions, (str, list)) and all(isinstance(caption, str) for caption in captions):
            row.pop(name, None)
            row[CAPTION] = captions
            break
    return row
