"""Bring datasets as the Hub has them to the columns that evaluation reads, without decoding images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from datasets import ClassLabel, Features, Image, Value

from starft_hf.data.columns import distinct_values, read_column
from starft_hf.data.source import is_stream
from starft_hf.utils.names import unknown_name


def check_features(dataset: Any, name: str) -> None:
    """Raise a ValueError unless `dataset` is one of `datasets` whose columns are known."""
    if getattr(dataset, "features", None) is None:
        raise ValueError(
            f"the dataset for {name!r} is a {type(dataset).__name__} without known columns; pass a datasets.Dataset, "
            "or an IterableDataset with features"
        )


def find_column(dataset: Any, candidates: Sequence[str], name: str, what: str) -> str:
    """The first of `candidates` that `dataset` has; a ValueError if it has none of them."""
    for column in candidates:
        if column in dataset.features:
            return column
    raise ValueError(
        f"the dataset for {name!r} has no column with the {what}: expected one of {list(candidates)}, found "
        f"{list(dataset.features)}. Rename the right one to {candidates[0]!r}."
    )


def renamed(dataset: Any, column: str, to: str) -> Any:
    """`dataset` with `column` renamed."""
    return dataset if column == to else dataset.rename_column(column, to)


def as_images(dataset: Any, column: str) -> Any:
    """`dataset` with encoded bytes in `column` read as images."""
    feature = dataset.features[column]
    encoded = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
    if encoded or (isinstance(feature, dict) and "bytes" in feature):
        return dataset.cast_column(column, Image())
    return dataset


def with_values(dataset: Any, column: str, sources: Sequence[str], function: Callable[..., Any], feature: Any) -> Any:
    """`dataset` with a column of the results of `function` on the values of the columns `sources`."""
    if is_stream(dataset):
        features = Features({**dataset.features, column: feature})
        return dataset.map(partial(_as_row, column, function), input_columns=list(sources), features=features)
    values = [function(*row) for row in zip(*(read_column(dataset, source) for source in sources), strict=True)]
    if column in dataset.features:
        dataset = dataset.remove_columns(column)
    return dataset.add_column(column, values, feature=feature)


def _as_row(column: str, function: Callable[..., Any], *values: Any) -> dict[str, Any]:
    return {column: function(*values)}


def as_class_labels(dataset: Any, column: str, names: Sequence[str]) -> Any:
    """`dataset` with the classes `names` in `column`, which holds indices or names.

    The names of a ClassLabel column may be written or ordered differently; they take precedence over its indices,
    unless they are only numbers. Other classes are a ValueError.
    """
    feature, labels = dataset.features[column], ClassLabel(names=list(names))
    places = {_plain(name): index for index, name in enumerate(names)}
    if isinstance(feature, ClassLabel) and feature.names == labels.names:
        return dataset
    if isinstance(feature, ClassLabel) and not all(name.isdecimal() for name in feature.names):
        if len(places) < len(names) or sorted(map(_plain, feature.names)) != sorted(places):
            raise ValueError(
                f"column {column!r} has the classes {_shown(feature.names)}, not {_shown(names)}. If its indices are "
                f"nevertheless those of the latter, cast it first: dataset.cast_column({column!r}, "
                "datasets.Value('int64'))"
            )
        order = [places[_plain(name)] for name in feature.names]
        return with_values(dataset, column, [column], partial(_at, column, order), labels)
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        return with_values(dataset, column, [column], partial(_index_of, column, places), labels)
    if not is_stream(dataset):
        for value in distinct_values(dataset, column):
            if not 0 <= value < len(names):
                raise ValueError(
                    f"column {column!r} holds the label {value}, but there are {len(names)} classes (labels 0 to "
                    f"{len(names) - 1}): {_shown(names)}"
                )
    return dataset.cast_column(column, labels)


def as_group_names(dataset: Any, column: str, names: Sequence[str]) -> Any:
    """`dataset` with the strings `names` in `column`, which holds indices or names.

    As strings, because groups without rows are not an error then: a part of a benchmark may lack some.
    """
    labels = as_class_labels(dataset, column, names)
    return with_values(labels, column, [column], partial(_at, column, tuple(names)), Value("string"))


def _at(column: str, values: Sequence[Any], index: int | None) -> Any:
    # Splits whose labels are secret have -1.
    if index is None or not 0 <= index < len(values):
        raise ValueError(
            f"column {column!r} has a row with {index}, which is not an index of {len(values)} names; fill or drop it"
        )
    return values[index]


def _index_of(column: str, places: dict[str, int], value: str | None) -> int:
    if value is None:
        raise ValueError(f"column {column!r} has a row without a value; fill or drop it")
    if _plain(value) not in places:
        raise ValueError(f"column {column!r} holds an " + unknown_name("class", value, places))
    return places[_plain(value)]


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def without_border(dataset: Any, column: str, width: int) -> Any:
    """`dataset` with `width` pixels cut off every side of the images in `column`, when they are read."""
    if is_stream(dataset):
        return with_values(dataset, column, [column], partial(_crop, width), dataset.features[column])
    return dataset.with_transform(partial(_crop_batch, column, width))


def _crop(width: int, image: Any) -> Any:
    return image.crop((width, width, image.width - width, image.height - width))


def _crop_batch(column: str, width: int, batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, column: [_crop(width, image) for image in batch[column]]} if column in batch else batch
