"""The names that people give to splits."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any


TRAIN, VALIDATION, TEST = "train", "validation", "test"

_WORDS = {
    TRAIN: ("train", "training", "trainset", "trainval"),
    VALIDATION: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing", "testset", "eval", "holdout"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_NUMBERED_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_NUMBERED = (TRAIN, VALIDATION, TEST)


def split_of(name: str) -> str | None:
    """The split that a word such as "Valid" means; None if it is not a usual name of one."""
    return _SPLIT_OF.get(name.strip().lower())


def split_of_value(value: Any) -> str:
    """The split that a value of a column means: 0, 1 and 2 are train, validation and test, other words themselves."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if text in ("0", "1", "2"):
        return _NUMBERED[int(text)]
    return split_of(text) or text


def names_a_split(name: str) -> bool:
    """Whether a word in a name is that of a split, as in "id_test", "PublicTest" and "train2017"."""
    return split_in(name) is not None


def split_in(name: str) -> str | None:
    """The split that the first such word in a name means, as "train" in "cars_train/cars_train"."""
    return next((split for word in _words(name) if (split := split_of(word)) is not None), None)


def split_of_file(path: str, default: str = TRAIN) -> str:
    """The split of a table or a shard, by its folder or its name, such as "train-00000-of-00002.parquet"."""
    *folders, name = PurePosixPath(path).parts
    for folder in folders:
        if names_a_split(folder):
            return split_of(folder) or folder
    stem = name.partition(".")[0]
    numbered = _NUMBERED_SHARD.fullmatch(stem)
    if numbered:
        return split_of(numbered[1]) or numbered[1]
    # As of Flickr_8k.trainImages.txt.
    return split_in(stem) or split_in(PurePosixPath(name).stem) or default


def in_order(splits: Iterable[str]) -> list[str]:
    """Names of splits with those of training, validation and test first."""
    return sorted(splits, key=lambda name: (_NUMBERED.index(name) if name in _NUMBERED else len(_NUMBERED), name))


def _words(name: str) -> list[str]:
    return re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name)
