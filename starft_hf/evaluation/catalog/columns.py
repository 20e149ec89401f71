"""Bring datasets as the Hub has them to the columns that evaluation reads, without decoding images."""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import ClassLabel, Value

from starft_hf.data.columns import read_column
from starft_hf.utils.names import unknown_name


def find_column(dataset: Any, candidates: Sequence[str], name: str, what: str) -> str:
    """The first of `candidates` that `dataset` has; a ValueError if it has none of them."""
    for column in candidates:
        if column in dataset.features:
            return column
    raise ValueError(
        f"the dataset for {name!r} has no column with the {what}: expected one of {list(candidates)}, found "
        f"{list(dataset.features)}. Rename the right one to {candidates[0]!r}."
    )


def rename_first(dataset: Any, candidates: Sequence[str], to: str, name: str) -> Any:
    """`dataset` with the first of `candidates` that it has renamed; a ValueError if it has none of them."""
    column = find_column(dataset, candidates, name, f"{to}s")
    return dataset if column == to else dataset.rename_column(column, to)


def with_values(dataset: Any, column: str, source: str, function: Callable[[Any], Any], feature: Any) -> Any:
    """`dataset` with a column of the results of `function` on the values of the column `source`."""
    values = list(map(function, read_column(dataset, source)))
    # Adding a column to selected rows rewrites them, through a transform if there is one.
    kept, dataset = dataset.format, dataset.with_format(None)
    if column in dataset.features:
        dataset = dataset.remove_columns(column)
    dataset = dataset.add_column(column, values, feature=feature)
    return dataset.with_format(kept["type"], **kept["format_kwargs"])


def as_class_labels(dataset: Any, column: str, names: Sequence[str]) -> Any:
    """`dataset` with the classes `names` in `column`, which holds indices or names.

    The names of a ClassLabel column may be written or ordered differently; they take precedence over its indices,
    unless they are only numbers. Other classes are a ValueError.
    """
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel) and feature.names == list(names):
        return dataset
    return with_values(dataset, column, column, _index_reader(feature, column, names), ClassLabel(names=list(names)))


def as_group_names(dataset: Any, column: str, names: Sequence[str], name: str) -> Any:
    """`dataset` with the strings `names` in `column`, which holds indices or names.

    As strings, because groups without rows are not an error then: part of a benchmark may not have all of them.
    """
    find_column(dataset, [column], name, "groups")
    index_of = _index_reader(dataset.features[column], column, names)
    return with_values(dataset, column, column, lambda value: names[index_of(value)], Value("string"))


def _index_reader(feature: Any, column: str, names: Sequence[str]) -> Callable[[Any], int]:
    own = feature.names if isinstance(feature, ClassLabel) else []
    places = {_plain(name): index for index, name in enumerate(names)}
    by_name = not all(name.isdecimal() for name in own)
    if by_name and (len(places) < len(names) or sorted(map(_plain, own)) != sorted(places)):
        raise ValueError(
            f"column {column!r} has the classes {_shown(own)}, not {_shown(names)}. If its indices are nevertheless "
            f"those of the latter, cast it first: dataset.cast_column({column!r}, datasets.Value('int64'))"
        )

    def index_of(value: Any) -> int:
        if isinstance(value, str):
            if _plain(value) not in places:
                raise ValueError(f"column {column!r} holds an " + unknown_name("class", value, places))
            return places[_plain(value)]
        # Splits whose labels are secret have -1.
        if value is None or not 0 <= value < len(names) or value != int(value):
            raise ValueError(
                f"column {column!r} has a row with {value}, but there are {len(names)} classes (labels 0 to "
                f"{len(names) - 1}): {_shown(names)}; fill or drop such rows"
            )
        return places[_plain(own[value])] if by_name else int(value)

    return index_of


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
