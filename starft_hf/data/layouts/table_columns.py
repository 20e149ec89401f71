"""What the columns of a table of images hold, by their names and their values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import pandas as pd

from starft_hf.data.image_formats import is_image
from starft_hf.data.layouts.image_index import ImageIndex
from starft_hf.data.layouts.layout import CAPTION, IMAGE, LABEL
from starft_hf.data.layouts.split_names import TEST, TRAIN, names_a_split, split_in, split_of, split_of_value
from starft_hf.data.urls import is_url


# Usual names of columns, the likeliest first, as `_plain` has them.
_PATHS = (
    *("filename", "image", "imagepath", "imgpath", "imagefile", "imgfilename", "filepath", "filepaths", "path"),
    *("file", "img", "photo", "imageid", "imgid", "imagename", "id"),
)
_LABELS = (
    *("label", "labels", "class", "classname", "category", "categoryname", "species", "breed", "target", "y"),
    *("classid", "categoryid", "labelid", "diagnosis", "dx", "choice"),
)
_CAPTIONS = (CAPTION, "captions", "comment", "comments", "sentence", "sentences", "text", "title", "description")
# The number of words from which texts are captions rather than names of classes, on average.
_WORDS = 3
_SPLITS = ("split", "subset", "partition")
# Parts of cross-validation.
_FOLDS = ("fold", "kfold", "folds")
# The share of values that must name images for a column to be one of paths.
ENOUGH = 0.5
_NUMBERS = "read as 0 for train, 1 for validation and 2 for test"


@dataclass(frozen=True)
class Wanted:
    """The columns that the user has named, and whether an image may have several classes."""

    image: str = IMAGE
    label: str = LABEL
    several: bool = False
    caption: str | None = None


def path_column(rows: pd.DataFrame, index: ImageIndex, file: str, wanted: Wanted) -> tuple[str | None, float]:
    """The column that names images, the one that was asked for or that of which most values do; and how many do."""
    if wanted.image in rows and wanted.image != IMAGE:
        return wanted.image, 1.0
    # Names of images rather than numbers that happen to be those of others.
    names = [name for name in rows if _are_image_names(rows[name])]
    names = names or [name for name in rows if _may_be_paths(rows[name])]
    shares = {str(name): index.share(values(rows[name]), file) for name in names}
    most = max(shares.values(), default=0.0)
    best = [name for name, share in shares.items() if share == most and (share > 0 or _are_image_names(rows[name]))]
    return min(best, key=lambda name: _rank(name, _PATHS), default=None), most


def label_column(rows: pd.DataFrame, wanted: Wanted, any_column: bool) -> tuple[str | None, tuple[str, ...] | None]:
    """The column with the labels, and the class names if the labels are numbers that another column names."""
    if wanted.label in rows and wanted.label != LABEL:
        return wanted.label, None
    known = [str(name) for name in rows if _rank(name, _LABELS) < len(_LABELS) and _may_be_labels(rows[name])]
    label = min(known, key=lambda name: _rank(name, _LABELS), default=None)
    if label is None and any_column:
        captions = caption_column(rows, wanted)
        names = [name for name in rows if name != captions and _plain(name) not in (CAPTION, *_SPLITS, *_FOLDS)]
        others = [str(name) for name in names if not _are_splits(name, rows[name])]
        if len(others) == 1 and _is_single(rows[others[0]]) and 1 < rows[others[0]].nunique() < len(rows):
            label = others[0]
    if label is None or not pd.api.types.is_integer_dtype(rows[label]):
        return label, None
    for name in [str(name) for name in rows if _plain(name).endswith("name") or _plain(name) in _LABELS]:
        if not isinstance(_first(rows[name]), str):
            continue
        pairs = rows[[label, name]].dropna().drop_duplicates().sort_values(label)
        numbers, words = pairs[label].tolist(), pairs[name].tolist()
        if numbers == list(range(len(set(words)))):
            return label, tuple(words)
    return label, None


def caption_column(rows: pd.DataFrame, wanted: Wanted) -> str | None:
    """The column with captions: the one that was asked for, or "caption", or one with a usual name if none has labels.

    The texts of the latter have some words, and most of them differ.
    """
    if (named := next((name for name in (wanted.caption, CAPTION) if name in rows), None)) is not None:
        return named
    known = [str(name) for name in rows if _rank(name, _CAPTIONS) < len(_CAPTIONS) and _are_texts(rows[name])]
    best = min(known, key=lambda name: _rank(name, _CAPTIONS), default=None)
    return best if best is None or label_column(rows, wanted, any_column=False)[0] is None else None


def one_hot_labels(rows: pd.DataFrame, several: bool = False) -> pd.Series | None:
    """The name of the column that is 1, if the other columns are 0 and 1 and every row has exactly one 1.

    With `several`, rows have any number of 1, and lists of names.
    """
    if len(rows.columns) < 2 or not len(rows) or not all(map(pd.api.types.is_numeric_dtype, rows.dtypes)):
        return None
    flags = rows.astype("Float64")
    if flags.isna().any(axis=None) or not flags.isin([0, 1]).all(axis=None):
        return None
    if several:
        names, ones = list(map(str, rows)), flags.to_numpy(dtype=bool)
        return pd.Series([list(compress(names, row)) for row in ones], dtype=object)
    if not (flags.sum(axis=1) == 1).all():
        return None
    return flags.astype(float).idxmax(axis=1).astype(object)


def splits_by_column(rows: pd.DataFrame, file: str) -> tuple[list[Any], str] | None:
    """The split of every row by a column, and how that was read; None if no column says it.

    It is one that is called split, subset or partition; else one of the names of splits, whatever it is called; else
    one that is called is_train, is_valid or the like.

    Raises:
        ValueError: if numbers of splits go beyond 2.
    """
    named = next((name for wanted in _SPLITS for name in rows if _plain(name) == wanted), None)
    name = named or next((name for name in rows if _are_splits(name, rows[name])), None)
    if name is None:
        return None
    found = values(rows[name])
    note = f"Splits are the column {name!r} of {file}"
    if (named is None and not isinstance(_first(rows[name]), str)) or set(map(str, found)) <= {"True", "False"}:
        meant = split_in(str(name)) or TRAIN
        other = TEST if meant == TRAIN else TRAIN
        # Of booleans in text files the values are words.
        splits = [None if value is None else meant if str(value) in ("1", "True") else other for value in found]
        return splits, f"{note}: {meant} or {other}."
    numbers = sorted({str(value) for value in found if value is not None and str(value).isdecimal()}, key=int)
    if set(numbers) - {"0", "1", "2"}:
        raise ValueError(
            f"column {name!r} of {file} has {', '.join(numbers[:6])}, and numbers of splits are {_NUMBERS}; write "
            "train, validation and test instead, or call the column something else, such as fold, if it has none"
        )
    splits = [None if value is None else split_of_value(value) for value in found]
    return splits, f"{note}{f', {_NUMBERS}' if numbers else ''}."


def is_called_split(name: str) -> bool:
    """Whether a column is called split, subset or partition."""
    return _plain(name) in _SPLITS


def are_splits_only(rows: pd.DataFrame) -> bool:
    """Whether all columns, if there are any, say which split a row is in."""
    return all(_plain(name) in _SPLITS or _are_splits(name, rows[name]) for name in rows)


def values(column: pd.Series) -> list[Any]:
    """The values of a column, None for missing ones."""
    return [None if is_missing(value) else value for value in column]


def is_missing(value: Any) -> bool:
    """Whether a value is None or the like; lists and dictionaries are not."""
    return not isinstance(value, (list, dict)) and bool(pd.isna(value))


def several_of(labels: pd.Series) -> "pd.Series[bool]":
    """Which labels are several others joined, as in "Effusion|Mass"."""
    single = {label for label in labels.dropna() if isinstance(label, str) and not re.search(r"[|;,]", label)}

    def is_several(label: Any) -> bool:
        parts = re.split(r"\s*[|;,]\s*", label) if isinstance(label, str) else []
        return len(parts) > 1 and set(parts) <= single

    return labels.map(is_several).astype(bool)


def _are_splits(name: Any, column: pd.Series) -> bool:
    if isinstance(_first(column), (list, dict)):
        return False
    found = {str(value) for value in column.dropna().unique()}
    if _is_flag(name):
        return found in ({"0", "1"}, {"True", "False"})
    return len(found) > 1 and all(map(names_a_split, found)) and any(split_of(value) == TRAIN for value in found)


def _is_flag(name: Any) -> bool:
    return str(name).lower().startswith("is") and names_a_split(str(name))


def _plain(name: Any) -> str:
    return re.sub(r"[\s_-]+", "", str(name)).lower()


def _rank(name: Any, known: Sequence[str]) -> int:
    return known.index(_plain(name)) if _plain(name) in known else len(known)


def _may_be_paths(column: pd.Series) -> bool:
    if pd.api.types.is_integer_dtype(column):
        return 2 * column.nunique() > len(column)
    return isinstance(_first(column), str)


def _are_image_names(column: pd.Series) -> bool:
    first = _first(column)
    return isinstance(first, str) and is_image(first) and not is_url(first)


def _are_texts(column: pd.Series) -> bool:
    """Whether values are texts, or lists of texts, most of which differ, of at least some words."""
    own = [text for value in values(column) for text in (value if isinstance(value, list) else [value])]
    texts = [text for text in own if text is not None]
    if not texts or not all(isinstance(text, str) for text in texts):
        return False
    return 2 * len(set(texts)) > len(texts) and sum(len(text.split()) for text in texts) >= _WORDS * len(texts)


def _may_be_labels(column: pd.Series) -> bool:
    """Whether a column does not hold measures, such as the place of a box."""
    return not pd.api.types.is_float_dtype(column) or bool((column.dropna() % 1 == 0).all())


def _is_single(column: pd.Series) -> bool:
    return not isinstance(_first(column), (list, dict, float))


def _first(column: pd.Series) -> Any:
    filled = column.dropna()
    return filled.iloc[0] if len(filled) else None
