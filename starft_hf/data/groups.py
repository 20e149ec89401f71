"""Evaluation groups of rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel

from starft_hf.data.labels import is_single, spelled
from starft_hf.data.source import column_names, is_iterable, plain


GroupFunction = Callable[[Mapping[str, Any]], str]

SEPARATOR = " x "
# The types of rows with several values.
_SEVERAL = (list, tuple, set, dict)


@dataclass(frozen=True)
class Groups:
    """Names the group of a row by a function of it, or by the values of columns, joined as in "waterbird x land".

    `names` are those of the values of ClassLabel columns, or of the columns of this name of a training set.
    """

    columns: tuple[str, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    function: GroupFunction | None = None

    def of(self, row: Mapping[str, Any]) -> str:
        """The group of a row."""
        if self.function is None:
            return SEPARATOR.join(self._name(column, row[column]) for column in self.columns)
        name = self.function(row)
        if not isinstance(name, str):
            raise ValueError(
                f"the group function returned {name!r} for the row {dict(row)!r}; it must return a string"
            )
        return name

    def _name(self, column: str, value: Any) -> str:
        names, value = self.names.get(column), plain(value)
        if value is None or value != value:  # NaN is a missing number
            raise ValueError(f"column {column!r} has a row without a value, so its group is unknown; fill or drop it")
        if isinstance(value, _SEVERAL):
            raise ValueError(_several(column, f"has a row with {_short(value)}"))
        if names is None or isinstance(value, str):
            return spelled(value)
        if not float(value).is_integer() or not 0 <= int(value) < len(names):
            known = ", ".join(names)
            raise ValueError(f"column {column!r} has the value {value}, but only {len(names)} names: {known}")
        return names[int(value)]


def resolve_groups(
    dataset: Any,
    columns: str | Sequence[str] | None,
    function: GroupFunction | None = None,
    training: Groups | None = None,
    label: str | None = None,
) -> Groups | None:
    """How to name the groups of `dataset`, or None if neither argument is given or a column is missing.

    Values without names have those of the groups of the training set, if these are given.

    Raises:
        ValueError: if both are given, or rows have several values in a column. That of the labels, `label`, is checked
            with these.
    """
    if function is not None and columns:
        raise ValueError(f"groups are given by column {columns!r} and by a function; choose one of them")
    present = column_names(dataset)
    if function is not None:
        return Groups(tuple(present or ()), function=function)
    if not columns:
        return None
    columns = (columns,) if isinstance(columns, str) else tuple(columns)
    if present is not None and not set(columns) <= set(present):
        return None
    features = getattr(dataset, "features", None) or {}
    for column in columns:
        if column != label:
            _check_values(dataset, column, features.get(column))
    names = {column: features[column].names for column in columns if isinstance(features.get(column), ClassLabel)}
    return Groups(columns, {**({} if training is None else training.names), **names})


def _check_values(dataset: Any, column: str, feature: Any) -> None:
    """Check that rows have one value in a column, by its type, and by the first row where that can be read."""
    first = None
    if not is_iterable(dataset) and len(dataset):
        if hasattr(dataset, "select_columns"):
            first = dataset.select_columns([column]).with_format(None)[0][column]
        elif getattr(dataset, "column_names", None) is None:
            # The first row was read for their names already.
            first = plain(dataset[0][column])
    if isinstance(first, _SEVERAL):
        raise ValueError(_several(column, f"has {_short(first)} in row 0"))
    if not is_single(feature):
        raise ValueError(_several(column, f"holds {_short(feature)}"))


def _several(column: str, found: str) -> str:
    return (
        f"column {column!r} {found}, and a group needs one value per column and row. Join them: "
        f"dataset.map(lambda row: {{{column!r}: {SEPARATOR!r}.join(map(str, row[{column!r}]))}}); or make a column of "
        "each, and name them all in group_column=[...]"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
