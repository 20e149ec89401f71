"""What the columns of a dataset hold, resolved and checked before anything expensive is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, DatasetDict, IterableDatasetDict

from starft_hf.data.groups import GroupFunction, Groups, resolve_groups
from starft_hf.data.source import column_names, is_iterable
from starft_hf.utils.names import check_names, unknown_name


@dataclass(frozen=True)
class ColumnSettings:
    """Which columns of a dataset hold what, and how its classes and groups are named.

    Attributes:
        class_names: names in label order; None reads them from the dataset.
        default_class_names: used if neither `class_names` nor the label column gives names.
        own_order: if a ClassLabel column has names of `class_names` in another order, use the order of the column;
            otherwise that is an error.
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
    """Which columns of a dataset are used, and what its labels mean.

    Attributes:
        image: column with the images.
        label: column with the class labels, or None.
        caption: column with captions, or None.
        groups: how the groups of rows are named; None if the classes are the groups.
        class_names: names in label order, or None without labels.
        classifier: the classes that images are classified into, if the labels stand for some of these; else None.
        class_mapping: for every label the indices into `classifier`, or None without one.
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
        """The class index that a value of the label column, an index or a name, stands for.

        Raises:
            ValueError: if it is not one of the classes.
        """
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
    """Find the columns that `settings` names in `dataset`, and the class names.

    Class names are those of `settings`, else of the ClassLabel feature, else the default ones of `settings`, else the
    values of a label column of strings.

    Args:
        dataset: a `datasets` Dataset or IterableDataset, or any torch dataset whose rows are mappings.
        settings: which columns hold what.
        what: the name of the dataset in messages.

    Raises:
        ValueError: if the dataset is empty, a column is missing or class names are needed and missing.
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
            raise ValueError(
                f"{what} has no column {column!r}; its columns are {columns}. Set {setting} to the right one."
            )
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
    if names is not None:
        check_names(names)
        if own_names is not None and _in_other_order(own_names, names):
            if not settings.own_order:
                raise ValueError(_other_order(own_names, names, label, what))
            names = own_names
    else:
        names = own_names if own_names is not None else settings.default_class_names
    if names is None and getattr(feature, "dtype", None) in ("string", "large_string"):
        names = distinct_values(dataset, label)
    if names is None and caption is not None:
        return unlabeled
    if names is None:
        raise ValueError(
            f"{what} has no class names: column {label!r} is {feature if feature is not None else 'untyped'}, not a "
            "ClassLabel. Pass class_names=[...] in label order, or cast the column to datasets.ClassLabel."
        )
    return ImageColumns(image, label, caption, groups, tuple(names))


def resolve_evaluation_columns(dataset: Any, settings: ColumnSettings, *, what: str) -> ImageColumns:
    """`resolve_columns`, with all checks of a dataset for evaluation.

    Raises:
        ValueError: if labels or requested groups are missing, class names contain duplicates, or a label or a group
            is invalid.
    """
    columns = resolve_columns(dataset, settings, what=what)
    if columns.class_names is None:
        raise ValueError(
            f"{what} has no labels in column {settings.label_column!r}; evaluation classifies images, so it needs "
            "labels and class_names"
        )
    if settings.group_column and columns.groups is None:
        wanted = [settings.group_column] if isinstance(settings.group_column, str) else settings.group_column
        present = column_names(dataset) or []
        missing = next(column for column in wanted if column not in present)
        raise ValueError(
            f"{what} has no column {missing!r}; its columns are {present}. Set group_column to the right one, or to "
            "None to use the classes as groups."
        )
    check_distinct(columns.class_names)
    check_labels(dataset, columns, what=what, several=False)
    _check_groups(dataset, columns, what=what)
    return columns


def _in_other_order(own: Sequence[str], class_names: Sequence[str]) -> bool:
    return set(own) <= set(class_names) and tuple(own) != tuple(class_names[: len(own)])


def _other_order(own: Sequence[str], class_names: Sequence[str], label: str, what: str) -> str:
    index = next(index for index, name in enumerate(own) if name != class_names[index])
    return (
        f"label {index} of column {label!r} of {what} is {own[index]!r} by its ClassLabel and {class_names[index]!r} "
        f"by class_names, which has {own[index]!r} for another label; omit class_names to use those of the "
        "column, or put both in the same order"
    )


def check_distinct(class_names: Sequence[str]) -> None:
    """Check that no two classes have the same name, since a classifier made from names could not distinguish them.

    Raises:
        ValueError: naming the first duplicate.
    """
    first: dict[str, int] = {}
    for label, name in enumerate(class_names):
        if first.setdefault(name, label) != label:
            raise ValueError(
                f"class_names contains duplicates: {name!r}, for labels {first[name]} and {label}; use distinct names "
                "such as 'crane (bird)' and 'crane (machine)'"
            )


def check_labels(dataset: Any, columns: ImageColumns, *, what: str, several: bool) -> None:
    """Check every label of a dataset, unless that would mean reading images.

    Args:
        several: whether more than one class has to occur.

    Raises:
        ValueError: naming the label that is out of range, or the only class that occurs.
    """
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
        missing = [name for name in groups.names.get(groups.columns[0], ()) if name not in present]
        if missing:
            raise ValueError(
                f"{what} has no row in group {missing[0]!r} of column {groups.columns[0]!r}, so its accuracy and the "
                "worst group are unknown; evaluate on rows of every group, or cast the column to strings to count "
                "only those that occur"
            )


def group_names(dataset: Any, columns: ImageColumns) -> set[str] | None:
    """The groups that have rows, or None if that would mean reading images.

    Raises:
        ValueError: if the group of a row is unknown.
    """
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
