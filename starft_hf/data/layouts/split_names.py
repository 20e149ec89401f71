"""The names that people give to splits."""

from typing import Any


TRAIN, VALIDATION, TEST = "train", "validation", "test"

_WORDS = {
    TRAIN: ("train", "training", "trainset"),
    VALIDATION: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing", "testset", "eval", "holdout"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
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
