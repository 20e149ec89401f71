"""What the columns of a data set hold, found out and checked before anything expensive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, DatasetDict, IterableDatasetDict

from starft_hf.data.groups import GroupFunction, Groups, resolve_groups
from starft_hf.data.source import column_names, is_stream
from starft_hf.utils.names import check_names, unknown_name


@dataclass(frozen=True)
class ColumnSettings:
    """Which columns of a dataset hold what, and how its classes and groups are named."""

    image_column: str = "image"
    label_column: str = "label"
    caption_column: str | None = None
    group_column: str | Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    group_function: GroupFunction | None = None


@dataclass(frozen=True)
class ImageColumns:
    """Which columns of a data set are used, and how its labels read.

    Attributes:
        image: column with the images.
        label: column with the class labels, or None.
        caption: column with captions, or None.
        groups: how the groups of rows are named, or None where their classes are their groups.
        class_names: names in label order, or None without labels.
        classifier: the classes that images are classified into, where the labels stand for some of these; else None.
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
                f"column {self.label!r} has a row with {value} where the index or the name of a class belongs; "
                "fill or drop it"
            )
        if not 0 <= int(value) < len(self.class_names):
            raise ValueError(
                f"column {self.label!r} holds the label {value}, but there are {len(self.class_names)} class names "
                f"(labels 0 to {len(self.class_names) - 1}); pass class_names that cover every label"
            )
        return int(value)


def resolve_columns(
    dataset: Any,
    settings: ColumnSettings,
    *,
    what: str,
    default_class_names: Sequence[str] | None = None,
    own_order: bool = False,
) -> ImageColumns:
    """Find the columns `settings` names in `dataset`, and the class names.

    Class names are those of `settings`, else of the ClassLabel feature, else `default_class_names`, else the values of
    a label column of strings.

    Args:
        dataset: a `datasets` Dataset or IterableDataset, or any torch data set whose rows are mappings.
        settings: which columns hold what.
        what: how messages call the data set.
        default_class_names: used when nothing else gives names.
        own_order: read a ClassLabel column that has some of the class names of `settings` in another order by its own;
            otherwise that is an error.

    Raises:
        ValueError: if the data set is empty, a column is missing or class names are needed and missing.
    """
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise ValueError(f"{what} is a dictionary with the splits {sorted(dataset)}; pass one of them")
    if not is_stream(dataset) and len(dataset) == 0:
        raise ValueError(f"{what} is empty; pass a data set with at least one row")
    columns = column_names(dataset)

    def find(setting: str, *, required: bool) -> str | None:
        column = getattr(settings, setting)
        if column is None or columns is None or column in columns:
            return column
        if not required:
            return None
        raise ValueError(
            f"{what} has no column {column!r}; its columns are {columns}. Set {setting} to the right one."
        )

    image = find("image_column", required=True)
    assert image is not None
    caption = find("caption_column", required=True)
    label = find("label_column", required=caption is None)
    groups = resolve_groups(dataset, settings.group_column, settings.group_function)
    if label is None:
        return ImageColumns(image, None, caption, groups, None)

    feature = (getattr(dataset, "features", None) or {}).get(label)
    names: Sequence[str] | None = settings.class_names
    if names is not None:
        check_names(names)
        if isinstance(feature, ClassLabel) and _in_other_order(feature.names, names):
            if not own_order:
                raise ValueError(_other_order(feature.names, names, label, what))
            names = feature.names
    elif isinstance(feature, ClassLabel):
        names = feature.names
    names = names if names is not None else default_class_names
    if names is None and getattr(feature, "dtype", None) in ("string", "large_string"):
        names = distinct_values(dataset, label)
    if names is None and caption is not None:
        return ImageColumns(image, None, caption, groups, None)
    if names is None:
        raise ValueError(
            f"{what} has no class names: column {label!r} is {feature if feature is not None else 'untyped'}, not a "
            "ClassLabel. Pass class_names=[...] in label order, or cast the column to datasets.ClassLabel."
        )
    return ImageColumns(image, label, caption, groups, tuple(names))


def resolve_evaluation_columns(
    dataset: Any,
    settings: ColumnSettings,
    *,
    what: str,
    default_class_names: Sequence[str] | None = None,
    own_order: bool = False,
) -> ImageColumns:
    """`resolve_columns`, and everything that evaluation asks of a data set.

    Raises:
        ValueError: if there are no labels or no groups where they are asked for, a class is there twice, or a label or
            a group does not fit.
    """
    columns = resolve_columns(
        dataset,
        settings,
        what=what,
        default_class_names=default_class_names,
        own_order=own_order,
    )
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
            "None to take the classes as groups."
        )
    check_distinct(columns.class_names)
    check_labels(dataset, columns, what=what, several=False)
    check_groups(dataset, columns, what=what)
    return columns


def _in_other_order(own: Sequence[str], class_names: Sequence[str]) -> bool:
    """Whether the names a column has for its labels are those of other labels in `class_names`."""
    return set(own) <= set(class_names) and tuple(own) != tuple(class_names[: len(own)])


def _other_order(own: Sequence[str], class_names: Sequence[str], label: str, what: str) -> str:
    index = next(index for index, name in enumerate(own) if name != class_names[index])
    return (
        f"label {index} of column {label!r} of {what} is {own[index]!r} by its ClassLabel and {class_names[index]!r} "
        f"by class_names, which has {own[index]!r} for another label; leave out class_names to read the column's own, "
        "or bring the two into one order"
    )


def check_distinct(class_names: Sequence[str]) -> None:
    """Check that no two classes have the same name, because no classifier from names could tell them apart.

    Raises:
        ValueError: naming the first one that is there twice.
    """
    seen: dict[str, int] = {}
    for index, name in enumerate(class_names):
        if name in seen:
            raise ValueError(
                f"class name {name!r} is there twice, for labels {seen[name]} and {index}; tell them apart by name, "
                "such as 'crane (bird)' and 'crane (machine)'"
            )
        seen[name] = index


def check_labels(dataset: Any, columns: ImageColumns, *, what: str, several: bool) -> None:
    """Check every label of a data set that can be read out of order.

    Args:
        several: whether more than one class has to occur.

    Raises:
        ValueError: naming the label that is out of range, or the only class there is.
    """
    if columns.label is None or is_stream(dataset) or not hasattr(dataset, "features"):
        return
    present = {columns.label_index(value) for value in distinct_values(dataset, columns.label)}
    assert columns.class_names is not None
    if several and len(present) < 2:
        only = columns.class_names[present.pop()]
        raise ValueError(
            f"{what} has one class only ({only!r}); contrasting needs images of at least two. A sorted data set that "
            "was cut to its first rows is a common cause: shuffle before selecting."
        )


def check_groups(dataset: Any, columns: ImageColumns, *, what: str) -> None:
    """Name the group of every row of a data set that can be read out of order, without reading its images.

    Raises:
        ValueError: naming the value that has no name, or the named group that has no row.
    """
    groups = columns.groups
    if groups is None:
        return
    present = group_names(dataset, columns)
    if present is None:
        return
    if "" in present:
        raise ValueError(f"{what} has rows whose group has an empty name; name it in {list(groups.columns)}")
    if groups.function is None and len(groups.columns) == 1:
        missing = [name for name in groups.names.get(groups.columns[0], ()) if name not in present]
        if missing:
            raise ValueError(
                f"{what} has no row in group {missing[0]!r} of column {groups.columns[0]!r}, so its accuracy is "
                "unknown and the worst group cannot be told; evaluate on rows of every group, or cast the column to "
                "strings to count those that occur"
            )


def group_names(dataset: Any, columns: ImageColumns) -> set[str] | None:
    """The groups that have rows, without reading images; None for a data set that can only be read row by row.

    Raises:
        ValueError: if the group of a row cannot be told.
    """
    if is_stream(dataset) or not hasattr(dataset, "features"):
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
    if is_stream(dataset):
        raise ValueError(
            f"the values of column {column!r} of a stream are not known in advance; pass class_names=[...]"
        )
    return dataset.select_columns([column]).with_format(None)[column][:]
