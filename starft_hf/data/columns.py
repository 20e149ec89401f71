"""What the columns of a dataset hold, resolved and checked before anything expensive is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, DatasetDict, IterableDatasetDict
from transformers.utils import logging

from starft_hf.data.groups import GroupFunction, Groups, resolve_groups
from starft_hf.data.source import column_names, is_iterable
from starft_hf.utils.names import check_names, unknown_name


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ColumnSettings:
    """Which columns of a dataset hold what, and how its classes and groups are named.

    Without `class_names`, in label order, names are read from the dataset; if it has none, they are the default ones.
    If a ClassLabel column has `class_names` in another order, `own_order` uses that order; otherwise it is an error.
    """

    image_column: str = "image"
    label_column: str = "label"
    caption_column: str | None = None
    group_column: str | Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    group_function: GroupFunction | None = None
    default_class_names: Sequence[str] | None = None
    own_order: bool = False


@dataclass(frozen=True)
class ImageColumns:
    """Which columns of a dataset are used, and what its labels mean; without `groups`, the classes are the groups.

    If labels stand for classes of a classifier, `class_mapping` has for every label the indices into `classifier`.
    """

    image: str
    label: str | None
    caption: str | None
    groups: Groups | None
    class_names: tuple[str, ...] | None
    classifier: tuple[str, ...] | None = None
    class_mapping: tuple[tuple[int, ...], ...] | None = None

    @property
    def used(self) -> list[str]:
        """The names of the columns that are read."""
        columns = [self.image, self.label, self.caption, *(self.groups.columns if self.groups is not None else ())]
        return list(dict.fromkeys(column for column in columns if column is not None))

    def label_of(self, row: Mapping[str, Any]) -> int:
        """The class index of a row."""
        assert self.label is not None
        return self.label_index(row[self.label])

    def label_index(self, value: Any) -> int:
        """The class index that a value of the label column, an index or a name, stands for."""
        assert self.class_names is not None
        if isinstance(value, str):
            if value not in self.class_names:
                raise ValueError(unknown_name("label", value, self.class_names))
            return self.class_names.index(value)
        if value is None or not float(value).is_integer():
            raise ValueError(
                f"column {self.label!r} has a row with {value} instead of the index or the name of a class; fill or "
                "drop it"
            )
        if not 0 <= int(value) < len(self.class_names):
            raise ValueError(
                f"column {self.label!r} holds the label {value}, but there are {len(self.class_names)} class names "
                f"(labels 0 to {len(self.class_names) - 1}); pass class_names that cover every label"
            )
        return int(value)


def resolve_columns(dataset: Any, settings: ColumnSettings, *, what: str) -> ImageColumns:
    """Find the columns that `settings` names in `dataset`, called `what` in messages, and the class names.

    Class names are those of `settings`, else of the ClassLabel feature, else the default ones of `settings`, else the
    values of a label column of strings.
    """
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise ValueError(f"{what} is a dictionary with the splits {sorted(dataset)}; pass one of them")
    if not is_iterable(dataset) and len(dataset) == 0:
        raise ValueError(f"{what} is empty; pass a dataset with at least one row")
    columns = column_names(dataset)

    def find(setting: str, *, required: bool) -> Any:
        column = getattr(settings, setting)
        if column is None or columns is None or column in columns:
            return column
        if required:
            raise ValueError(_no_column(what, column, columns, setting))
        return None

    image = find("image_column", required=True)
    caption = find("caption_column", required=True)
    label = find("label_column", required=caption is None)
    groups = resolve_groups(dataset, settings.group_column, settings.group_function)
    unlabeled = ImageColumns(image, None, caption, groups, None)
    if label is None:
        return unlabeled

    feature = (getattr(dataset, "features", None) or {}).get(label)
    own_names = feature.names if isinstance(feature, ClassLabel) else None
    names: Sequence[str] | None = settings.class_names
    if names is None:
        names = own_names if own_names is not None else settings.default_class_names
    else:
        check_names(names)
        if own_names is not None and set(own_names) <= set(names) and list(own_names) != list(names[: len(own_names)]):
            if not settings.own_order:
                raise ValueError(_other_order(own_names, names, label, what))
            names = own_names
    if names is None and getattr(feature, "dtype", None) in ("string", "large_string"):
        names = distinct_values(dataset, label)
    if names is None and caption is not None:
        return unlabeled
    if names is None:
        raise ValueError(
            f"{what} has no class names: column {label!r} is {'untyped' if feature is None else feature}, not a "
            "ClassLabel. Pass class_names=[...] in label order, or cast the column to datasets.ClassLabel."
        )
    return ImageColumns(image, label, caption, groups, tuple(names))


def resolve_evaluation_columns(dataset: Any, settings: ColumnSettings, *, what: str) -> ImageColumns:
    """`resolve_columns`, with all checks of the labels, class names and groups of a dataset for evaluation."""
    columns = resolve_columns(dataset, settings, what=what)
    if columns.class_names is None:
        raise ValueError(
            f"{what} has no labels in column {settings.label_column!r}; evaluation needs labels and class_names"
        )
    if settings.group_column and columns.groups is None:
        wanted = [settings.group_column] if isinstance(settings.group_column, str) else settings.group_column
        present = column_names(dataset) or []
        missing = next(column for column in wanted if column not in present)
        raise ValueError(f"{_no_column(what, missing, present, 'group_column')} None uses the classes as groups.")
    check_distinct(columns.class_names)
    check_labels(dataset, columns, what=what, several=False)
    _check_groups(dataset, columns, what=what)
    _warn_of_groups_across_classes(dataset, columns)
    return columns


def _no_column(what: str, column: str, columns: Sequence[str], setting: str) -> str:
    return f"{what} has no column {column!r}; its columns are {columns}. Set {setting} to the right one."


def _other_order(own: Sequence[str], class_names: Sequence[str], label: str, what: str) -> str:
    index = next(index for index, name in enumerate(own) if name != class_names[index])
    return (
        f"label {index} of column {label!r} of {what} is {own[index]!r} by its ClassLabel and {class_names[index]!r} "
        "by class_names; omit class_names to use those of the column, or put both in the same order"
    )


def check_distinct(class_names: Sequence[str]) -> None:
    """Check that no two classes have the same name, since a classifier made from names could not distinguish them."""
    first: dict[str, int] = {}
    for label, name in enumerate(class_names):
        if first.setdefault(name, label) != label:
            raise ValueError(
                f"class_names contains duplicates: {name!r}, for labels {first[name]} and {label}; use distinct names "
                "such as 'crane (bird)' and 'crane (machine)'"
            )


def check_labels(dataset: Any, columns: ImageColumns, *, what: str, several: bool) -> None:
    """Check every label of a dataset, and that `several` classes occur, unless that would mean reading images."""
    if columns.label is None or is_iterable(dataset) or not hasattr(dataset, "features"):
        return
    present = {columns.label_index(value) for value in distinct_values(dataset, columns.label)}
    assert columns.class_names is not None
    if several and len(present) < 2:
        only = columns.class_names[present.pop()]
        raise ValueError(
            f"{what} has only one class ({only!r}); contrasting needs images of at least two. A common cause is a "
            "sorted dataset that was cut to its first rows: shuffle before selecting."
        )


def _check_groups(dataset: Any, columns: ImageColumns, *, what: str) -> None:
    """Check that every row has a group and every named group has rows, unless that would mean reading images."""
    groups = columns.groups
    if groups is None or (present := group_names(dataset, columns)) is None:
        return
    if "" in present:
        raise ValueError(f"{what} has rows whose group has an empty name; name it in {list(groups.columns)}")
    if groups.function is None and len(groups.columns) == 1:
        (column,) = groups.columns
        for name in groups.names.get(column, ()):
            if name not in present:
                raise ValueError(
                    f"{what} has no row in group {name!r} of column {column!r}, so the worst group is unknown; "
                    "evaluate on rows of every group, or cast the column to strings to count only those that occur"
                )


def _warn_of_groups_across_classes(dataset: Any, columns: ImageColumns) -> None:
    """Warn, once, of groups that have images of most classes: the worst of them is rarely what is meant."""
    groups, label = columns.groups, columns.label
    if groups is None or groups.function is not None or label in groups.columns or label is None:
        return
    if is_iterable(dataset) or not hasattr(dataset, "features"):
        return
    values = zip(*(map(str, read_column(dataset, column)) for column in groups.columns), strict=True)
    classes: dict[tuple[str, ...], set[Any]] = {}
    for value, index in zip(values, read_column(dataset, label), strict=True):
        classes.setdefault(value, set()).add(index)
    most = max(map(len, classes.values()))
    if most > 1 and most > len(columns.class_names or ()) / 2:
        logger.warning_once(
            f"The groups by {' and '.join(map(repr, groups.columns))} have images of most classes each. Worst-group "
            "accuracy is usually over combinations of class and attribute, of which some may be far worse: for those, "
            f"set group_column={[label, *groups.columns]!r}. This warning is given once."
        )


def group_names(dataset: Any, columns: ImageColumns) -> set[str] | None:
    """The groups that have rows, or None if that would mean reading images."""
    if is_iterable(dataset) or not hasattr(dataset, "features"):
        return None
    groups = columns.groups
    if groups is None:
        assert columns.label is not None
        assert columns.class_names is not None
        return {columns.class_names[columns.label_index(value)] for value in distinct_values(dataset, columns.label)}
    used = [column for column in groups.columns if column != columns.image]
    values = zip(*(read_column(dataset, column) for column in used), strict=True)
    return {groups.of(dict(zip(used, row, strict=True))) for row in values}


def distinct_values(dataset: Any, column: str) -> list[Any]:
    """The distinct values of a column of a `datasets` Dataset."""
    values = np.asarray(read_column(dataset, column))
    if values.dtype == object and any(value is None for value in values.flat):
        raise ValueError(f"column {column!r} has a row without a value; fill or drop it")
    return np.unique(values).tolist()


def read_column(dataset: Any, column: str) -> list[Any]:
    """All values of a column of a `datasets` Dataset, without decoding the other columns."""
    if is_iterable(dataset):
        raise ValueError(
            f"the values of column {column!r} of an iterable dataset are not known in advance; pass class_names=[...]"
        )
    return dataset.select_columns([column]).with_format(None)[column][:]
