"""What the columns of a data set hold, found out and checked before anything expensive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, DatasetDict, IterableDatasetDict

from starft_hf.configuration import StarFTConfig
from starft_hf.names import unknown_name


@dataclass(frozen=True)
class ImageColumns:
    """Which columns of a data set are used, and how its labels read.

    Attributes:
        image: column with the images.
        label: column with the class labels, or None.
        caption: column with captions, or None.
        group: column with groups, or None.
        class_names: names in label order, or None without labels.
    """

    image: str
    label: str | None
    caption: str | None
    group: str | None
    class_names: tuple[str, ...] | None

    @property
    def used(self) -> list[str]:
        """The names of the columns that are read."""
        return [column for column in (self.image, self.label, self.caption, self.group) if column is not None]

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
        if not 0 <= int(value) < len(self.class_names):
            raise ValueError(
                f"column {self.label!r} holds the label {value}, but there are {len(self.class_names)} class names "
                f"(labels 0 to {len(self.class_names) - 1}); pass class_names that cover every label"
            )
        return int(value)


def column_names(dataset: Any) -> list[str] | None:
    """The columns of `dataset`, or None for a stream that does not say."""
    names = getattr(dataset, "column_names", None)
    if names is None and not is_stream(dataset) and len(dataset):
        first = dataset[0]
        if not isinstance(first, Mapping):
            raise TypeError(
                f"rows of the {type(dataset).__name__} are of type {type(first).__name__}; rows must be mappings "
                "such as {'image': ..., 'label': ...}"
            )
        names = list(first)
    return list(names) if names else None


def is_stream(dataset: Any) -> bool:
    """Whether rows can only be read in order."""
    return isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__")


def resolve_columns(
    dataset: Any, config: StarFTConfig, *, what: str, default_class_names: Sequence[str] | None = None
) -> ImageColumns:
    """Find the columns `config` names in `dataset`, and the class names.

    Class names are those of `config`, else of the ClassLabel feature, else `default_class_names`, else the values of
    a label column of strings.

    Args:
        dataset: a `datasets` Dataset or IterableDataset, or any torch data set whose rows are mappings.
        config: the settings.
        what: how messages call the data set.
        default_class_names: used when nothing else gives names.

    Raises:
        ValueError: if the data set is empty, a column is missing or class names are needed and missing.
    """
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise ValueError(f"{what} is a dictionary with the splits {sorted(dataset)}; pass one of them")
    if not is_stream(dataset) and len(dataset) == 0:
        raise ValueError(f"{what} is empty; pass a data set with at least one row")
    columns = column_names(dataset)

    def find(setting: str, *, required: bool) -> str | None:
        column = getattr(config, setting)
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
    group = find("group_column", required=False)
    if label is None:
        return ImageColumns(image, None, caption, group, None)

    feature = (getattr(dataset, "features", None) or {}).get(label)
    names: Sequence[str] | None = config.class_names
    if names is None and isinstance(feature, ClassLabel):
        names = feature.names
    names = names or default_class_names
    if names is None and getattr(feature, "dtype", None) in ("string", "large_string"):
        names = distinct_values(dataset, label)
    if names is None and caption is not None:
        return ImageColumns(image, None, caption, group, None)
    if names is None:
        raise ValueError(
            f"{what} has no class names: column {label!r} is {feature if feature is not None else 'untyped'}, not a "
            "ClassLabel. Pass class_names=[...] in label order, or cast the column to datasets.ClassLabel."
        )
    return ImageColumns(image, label, caption, group, tuple(names))


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


def distinct_values(dataset: Any, column: str) -> list[Any]:
    """The distinct values of a column of a `datasets` Dataset."""
    return np.unique(np.asarray(read_column(dataset, column))).tolist()


def read_column(dataset: Any, column: str) -> list[Any]:
    """All values of a column of a `datasets` Dataset, without decoding the other columns."""
    if is_stream(dataset):
        raise ValueError(
            f"the values of column {column!r} of a stream are not known in advance; pass class_names=[...]"
        )
    return dataset.select_columns([column]).with_format(None)[column][:]


def group_names(dataset: Any, columns: ImageColumns) -> list[str] | None:
    """The names of the groups behind the values of a ClassLabel group column, or None for other columns."""
    feature = (getattr(dataset, "features", None) or {}).get(columns.group)
    return list(feature.names) if isinstance(feature, ClassLabel) else None
