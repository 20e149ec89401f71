"""What the values of a label column mean: positions in the order of the class names, or the names themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Value
from transformers.utils import logging

from starft_hf.data.imagenet import names_of_ids
from starft_hf.data.source import plain
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset, and how the values of its label column name them.

    Attributes:
        names: the class names, in label order.
        written: the classes as the column has them, where they are not the names, such as WordNet ids.
        ordered: whether integers may be positions; not if the names are the strings of a column.
        by_name: whether numbers stand for names, as 3 does for "3", rather than for positions.
        column: the classes of a ClassLabel column in its own order, where that is not the order of `names`.
    """

    names: tuple[str, ...]
    written: tuple[str, ...] | None = None
    ordered: bool = True
    by_name: bool = False
    column: tuple[str, ...] | None = None

    @property
    def first(self) -> str | int:
        """A value of the first class."""
        return self.names[0] if self.by_name or self.column is not None else 0

    def index(self, value: Any, column: str) -> int:
        """The class index that a value of the label column stands for."""
        value = plain(value)
        if isinstance(value, (list, tuple, dict)):
            raise ValueError(several_labels([value], column))
        if isinstance(value, str):
            return self._index_of_name(value, column)
        if value is None:
            raise ValueError(missing_label(column))
        if not float(value).is_integer():
            raise ValueError(
                f"column {column!r} has a row with {value} instead of the index or the name of a class; fill or drop "
                "it"
            )
        if self.by_name:
            return self._index_of_name(spelled(value), column)
        if isinstance(value, bool) and len(self.names) != 2:
            raise ValueError(
                f"column {column!r} holds booleans, but there are {len(self.names)} classes; pass two class_names, "
                "that for False first"
            )
        known = self.column or self.names
        if not 0 <= int(value) < len(known):
            advice = ""
            if value == -1:
                keep = f"dataset.filter(lambda row: row[{column!r}] >= 0)"
                advice = f", and -1 often marks rows without a label; leave these out with {keep}"
            elif value == len(known):
                lower = f"dataset.map(lambda row: {{{column!r}: row[{column!r}] - 1}})"
                advice = f"; pass class_names that cover every label or, if labels start at 1, lower them: {lower}"
            raise ValueError(
                f"column {column!r} holds the label {value}, but there are {len(known)} class names (labels 0 to "
                f"{len(known) - 1}){advice or '; pass class_names that cover every label'}"
            )
        return int(value) if self.column is None else self.names.index(self.column[int(value)])

    def _index_of_name(self, name: str, column: str) -> int:
        for known in (self.names, self.written or ()):
            if name in known:
                return known.index(name)
        words = names_of_ids([name])
        if words is not None and words[0] in self.names:
            return self.names.index(words[0])
        raise ValueError(
            f"column {column!r} has an {unknown_name('label', name, self.names)} Rename it, pass class_names with it, "
            f"or leave such rows out: dataset.filter(lambda row: row[{column!r}] != {name!r})"
        )


def named(written: tuple[str, ...], *, ordered: bool) -> Labels:
    """The classes of a dataset by their own names, or by what WordNet ids stand for."""
    words = names_of_ids(written)
    if words is None:
        return Labels(written, ordered=ordered)
    logger.warning_once(f"Class names are WordNet ids; they are read as {words[0]!r} for {written[0]!r}, and so on.")
    return Labels(words, written, ordered)


def missing_label(column: str) -> str:
    """The message for a row without a label, when all labels are checked or when the row is read."""
    keep = f"dataset.filter(lambda row: row[{column!r}] is not None)"
    return f"column {column!r} has a row without a value; fill it, or leave it out: {keep}"


def spelled(value: Any) -> str:
    """A number, or a boolean, as the name of a class or a group: 1.0 is "1"."""
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else str(value)


def several_labels(values: Sequence[Any], column: str) -> str:
    """The message for a label column whose first rows have several labels each, `values`, if they are known."""
    is_one_hot = bool(values) and all(map(_is_one_hot, values))
    kind, one = ("one-hot", ".index(1)") if is_one_hot else ("multi-label", "[0]")
    found = f"a row has {values[0]!r}" if values else "a row has several labels"
    return (
        f"column {column!r} is {kind}: {found}, and classes must exclude each other. Give every row one label: "
        f"dataset.map(lambda row: {{{column!r}: row[{column!r}]{one}}}); or, to train on several, use "
        "base_loss='multi_label'"
    )


def _is_one_hot(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and sorted(value) == [0] * (len(value) - 1) + [1]


def numbers_as_labels(
    names: tuple[str, ...], values: Sequence[Any] | None, *, ordered: bool, given: bool, column: str, what: str
) -> Labels:
    """How the numbers of a label column name classes.

    Args:
        names: the class names.
        values: the distinct numbers, or None if they are not known.
        ordered: whether the order of the names is one that numbers may refer to.
        given: whether the names were given for these numbers, in label order.
        column: the label column.
        what: the dataset, for messages.

    Raises:
        ValueError: if it is not clear whether numbers are positions or names.
    """
    positions = Labels(names)
    if all(name == str(place) for place, name in enumerate(names)):
        return positions
    if values is None:
        are_names = all(name.isdecimal() for name in names)
        are_positions = True
    else:
        are_names = all(spelled(value) in names for value in values)
        are_positions = all(0 <= value < len(names) for value in values)
    if are_names and (not ordered or not are_positions):
        return Labels(names, by_name=True)
    if ordered and (given or not are_names):
        return positions
    shown = "numbers" if not values else f"numbers such as {values[0]}"
    found = f"column {column!r} of {what} holds {shown}, and the classes are {list(names[:4])}"
    why = "which may be names or positions" if ordered else "strings, which numbers are not positions of"
    raise ValueError(
        f"{found}{' and others' if len(names) > 4 else ''}, {why}; name the labels, in their own order: "
        f"dataset.cast_column({column!r}, datasets.ClassLabel(names=[...]))"
    )


def class_feature(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel feature; None for other features."""
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def is_text(feature: Any) -> bool:
    """Whether a feature holds strings."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def is_single(feature: Any) -> bool:
    """Whether a column has one value per row, as far as its feature is known."""
    return feature is None or isinstance(feature, (ClassLabel, Value))
