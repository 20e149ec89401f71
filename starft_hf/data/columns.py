"""What the columns of a dataset hold, resolved and checked before anything expensive is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

from starft_hf.data.captions import captions_of
from starft_hf.data.groups import GroupFunction, Groups, resolve_groups
from starft_hf.data.imagenet import names_of_ids
from starft_hf.data.labels import (
    Labels,
    class_feature,
    is_single,
    is_text,
    missing_label,
    named,
    numbers_as_labels,
    several_labels,
)
from starft_hf.data.multi_labels import (
    EITHER,
    as_vector,
    check_rows,
    class_indices,
    distinct_entries,
    entry_feature,
    form_by_type,
    form_of,
)
from starft_hf.data.source import check_dataset, column_names, is_iterable
from starft_hf.utils.names import check_distinct, check_names


logger = logging.get_logger(__name__)

_CHECKED_CAPTIONS = 1000


@dataclass(frozen=True)
class ColumnSettings:
    """Which columns of a dataset hold what, and how its classes and groups are named.

    Without `class_names`, in label order, names are read from the dataset; if it has none, they are those of
    `training` or the default ones. `training` has the columns of the training set, for a dataset that is evaluated
    with its classes: labels and groups are matched with them by name. With `multi_label`, rows have any number of
    classes.
    """

    image_column: str = "image"
    label_column: str | None = "label"
    caption_column: str | None = None
    group_column: str | Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    group_function: GroupFunction | None = None
    default_class_names: Sequence[str] | None = None
    training: "ImageColumns | None" = None
    multi_label: bool = False


@dataclass(frozen=True)
class ImageColumns:
    """Which columns of a dataset are used, and what its labels mean; without `groups`, the classes are the groups.

    If labels stand for classes of a classifier, `class_mapping` has for every label the indices into `classifier`.
    `several` is how rows name any number of classes, as `data.multi_labels` has it, for which `labels` says what an
    entry means; None if every row has one. Without `groups`, such rows are in none.
    """

    image: str
    label: str | None
    caption: str | None
    groups: Groups | None
    labels: Labels | None
    classifier: tuple[str, ...] | None = None
    class_mapping: tuple[tuple[int, ...], ...] | None = None
    several: str | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, in label order, or None without labels."""
        return None if self.labels is None else self.labels.names

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
        assert self.labels is not None
        assert self.label is not None
        return self.labels.index(value, self.label)

    def classes_of(self, row: Mapping[str, Any]) -> list[int]:
        """The class indices of a row, one unless rows have several."""
        assert self.labels is not None
        assert self.label is not None
        if self.several is None:
            return [self.label_of(row)]
        return class_indices(row[self.label], self.several, self.labels, self.label)

    def targets_of(self, row: Mapping[str, Any] | None) -> dict[str, Any]:
        """The "label" of a row, or its "targets" `(C,)` where rows have several; of None those of a blank row."""
        if self.several is None:
            return {"label": 0 if row is None else self.label_of(row)}
        return {"targets": as_vector([] if row is None else self.classes_of(row), len(self.class_names or ()))}

    def group_of(self, row: Mapping[str, Any]) -> str:
        """The name of the group of a row: its class, unless columns or a function name groups."""
        if self.groups is None:
            if self.several is not None:
                return ""
            assert self.class_names is not None
            return self.class_names[self.label_of(row)]
        if self.class_names is not None and self.label in self.groups.columns and self.groups.function is None:
            row = {**row, self.label: self.class_names[self.label_of(row)]}
        return self.groups.of(row)


def resolve_columns(dataset: Any, settings: ColumnSettings, *, what: str) -> ImageColumns:
    """Find the columns that `settings` names in `dataset`, called `what` in messages, and the class names.

    Class names are those of `settings`, else of the ClassLabel feature, else the default ones of `settings`, else the
    values of a label column of strings.
    """
    check_dataset(dataset, what)
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
    training = None if settings.training is None else settings.training.groups
    groups = resolve_groups(dataset, settings.group_column, settings.group_function, training, label)
    unlabeled = ImageColumns(image, None, caption, groups, None)
    if label is None:
        return unlabeled

    labels = _resolve_labels(dataset, label, settings, what)
    if labels is None and caption is not None:
        return unlabeled
    if labels is None:
        feature = (getattr(dataset, "features", None) or {}).get(label)
        order = "for False and True" if getattr(feature, "dtype", None) == "bool" else "in label order"
        raise ValueError(
            f"{what} has no class names: column {label!r} is {'untyped' if feature is None else feature}, not a "
            f"ClassLabel. Pass class_names=[...] {order}, or cast the column to datasets.ClassLabel."
        )
    if not settings.multi_label:
        return ImageColumns(image, label, caption, groups, labels)
    if groups is not None and groups.function is None and label in groups.columns:
        raise ValueError(
            f"group_column names {label!r}, of which a row has several classes, so they are not groups; name columns "
            "with one value per row"
        )
    return ImageColumns(image, label, caption, groups, labels, several=_form(dataset, label, labels, settings))


def _form(dataset: Any, label: str, labels: Labels, settings: ColumnSettings) -> str:
    """How rows name several classes."""
    feature = entry_feature((getattr(dataset, "features", None) or {}).get(label))
    if is_iterable(dataset) or not hasattr(dataset, "features"):
        return form_by_type(feature) or EITHER
    known = None if settings.training is None else settings.training.several
    return form_of(read_column(dataset, label), feature, labels, label, known)


def _resolve_labels(dataset: Any, label: str, settings: ColumnSettings, what: str) -> Labels | None:
    """What the values of a label column mean; None if nothing names the classes."""
    feature = (getattr(dataset, "features", None) or {}).get(label)
    if settings.multi_label:
        feature = entry_feature(feature)
    if not is_single(feature):
        rows = [] if is_iterable(dataset) else read_column(dataset.select(range(min(len(dataset), 100))), label)
        raise ValueError(f"{what}: {several_labels(rows, label)}")
    own, training = class_feature(feature), settings.training
    if settings.class_names is not None:
        check_names(settings.class_names)
        given = tuple(settings.class_names)
        given = names_of_ids(given) or given
        if own is not None:
            return _renamed(own, given, training, label, what)
        if is_text(feature):
            written = training.labels.written if training is not None and training.labels is not None else None
            return Labels(given, written)
        numbers = _numbers(dataset, label, settings)
        return numbers_as_labels(given, numbers, ordered=True, given=True, column=label, what=what)
    if own is not None:
        return named(own, ordered=True)
    default = training.labels if training is not None else None
    if default is None and settings.default_class_names is not None:
        default = Labels(tuple(settings.default_class_names))
    if is_text(feature):
        return default or named(tuple(_values(dataset, label, settings)), ordered=False)
    if default is None:
        return None
    given_for_these = training is None
    return numbers_as_labels(
        default.names,
        _numbers(dataset, label, settings),
        ordered=default.ordered,
        given=given_for_these,
        column=label,
        what=what,
    )


def _renamed(
    own: tuple[str, ...], given: tuple[str, ...], training: ImageColumns | None, label: str, what: str
) -> Labels:
    """The classes of a ClassLabel column where `class_names` are given: the same ones, or other names for them."""
    words = names_of_ids(own) or own
    if words == given[: len(words)]:
        return Labels(given if training is None else words, own)
    if set(words) <= set(given):
        return Labels(given, column=words) if training is None else Labels(words, own)
    known = None if training is None else training.labels
    written = None if known is None else known.written
    if written is not None and set(own) <= set(written):
        return Labels(tuple(given[written.index(name)] for name in own), own)
    moved = any(name in given and given[place : place + 1] != (name,) for place, name in enumerate(words))
    if moved or (known is not None and (written is not None or set(words) & set(given))):
        raise ValueError(
            f"column {label!r} of {what} has the classes {list(own[:4])}, and class_names has others, "
            f"{list(given[:4])}; pass class_names that name them all, or omit it to use those of the column"
        )
    return Labels(given, own)


def _numbers(dataset: Any, label: str, settings: ColumnSettings) -> list[Any] | None:
    """The distinct values of a label column, or None where they cannot be read without the images."""
    if is_iterable(dataset) or not hasattr(dataset, "features"):
        return None
    return _values(dataset, label, settings)


def _values(dataset: Any, label: str, settings: ColumnSettings) -> list[Any]:
    if settings.multi_label:
        return distinct_entries(read_column(dataset, label), label)
    return distinct_values(dataset, label)


def resolve_evaluation_columns(dataset: Any, settings: ColumnSettings, *, what: str) -> ImageColumns:
    """`resolve_columns`, with all checks of the labels, class names and groups of a dataset for evaluation."""
    columns = resolve_columns(dataset, settings, what=what)
    if columns.class_names is None:
        raise ValueError(
            f"{what} has no labels in column {settings.label_column!r}; evaluation needs labels and class_names, or "
            "captions, for retrieval"
        )
    if settings.group_column and columns.groups is None:
        wanted = [settings.group_column] if isinstance(settings.group_column, str) else settings.group_column
        present = column_names(dataset) or []
        missing = next(column for column in wanted if column not in present)
        raise ValueError(f"{_no_column(what, missing, present, 'group_column')} None uses the classes as groups.")
    check_distinct(columns.class_names)
    check_labels(dataset, columns, what=what, several=False)
    trained = () if settings.training is None else settings.training.class_names or ()
    if columns.several is None and set(columns.class_names) < set(trained):
        logger.warning(
            "%s has %d of the %d classes of training, and its images are classified among these only.",
            what,
            len(columns.class_names),
            len(trained),
        )
    _check_groups(dataset, columns, what=what)
    _warn_of_groups_across_classes(dataset, columns)
    return columns


def _no_column(what: str, column: str, columns: Sequence[str], setting: str) -> str:
    return f"{what} has no column {column!r}; its columns are {columns}. Set {setting} to the right one."


def check_labels(dataset: Any, columns: ImageColumns, *, what: str, several: bool) -> None:
    """Check every label of a dataset, and that `several` classes occur, unless that would mean reading images."""
    if columns.label is None or is_iterable(dataset) or not hasattr(dataset, "features"):
        return
    if columns.several is not None:
        rows = (columns.classes_of({columns.label: value}) for value in read_column(dataset, columns.label))
        check_rows(rows, columns.class_names or (), columns.label, what)
        return
    values = distinct_values(dataset, columns.label)
    if values == [-1, 1]:
        raise ValueError(
            f"column {columns.label!r} of {what} holds -1 and 1, as the attributes of CelebA do; make them 0 and 1: "
            f"dataset.map(lambda row: {{{columns.label!r}: (row[{columns.label!r}] + 1) // 2}})"
        )
    present = {columns.label_index(value) for value in values}
    assert columns.class_names is not None
    if several and len(present) < 2:
        only = columns.class_names[present.pop()]
        raise ValueError(
            f"{what} has only one class ({only!r}); contrasting needs images of at least two. A common cause is a "
            "sorted dataset that was cut to its first rows: shuffle before selecting."
        )


def check_captions(dataset: Any, columns: ImageColumns, *, what: str, most: int | None = _CHECKED_CAPTIONS) -> None:
    """Check the captions of the first rows of a dataset, or of all, unless that would mean reading images."""
    if columns.caption is None or is_iterable(dataset) or not hasattr(dataset, "features"):
        return
    first = read_column(dataset.select(range(min(len(dataset), most or len(dataset)))), columns.caption)
    for row, value in enumerate(first):
        try:
            captions_of(value, columns.caption)
        except ValueError as error:
            raise ValueError(f"{what}, row {row}: {error}") from error


def _check_groups(dataset: Any, columns: ImageColumns, *, what: str) -> None:
    """Check that every row has a group and every named group has rows, unless that would mean reading images."""
    groups = columns.groups
    if groups is None or (present := group_names(dataset, columns)) is None:
        return
    if "" in present:
        raise ValueError(f"{what} has rows whose group has an empty name; name it in {list(groups.columns)}")
    if groups.function is None and len(groups.columns) == 1:
        (column,) = groups.columns
        named = class_feature(dataset.features.get(column)) or ()
        if named and column == columns.label:
            names = columns.class_names or ()
            named = tuple(names[columns.label_index(index)] for index in range(len(named)))
        for name in named:
            if name not in present:
                raise ValueError(
                    f"{what} has no row in group {name!r} of column {column!r}, so the worst group is unknown; "
                    "evaluate on rows of every group, or cast the column to strings to count only those that occur"
                )


def _warn_of_groups_across_classes(dataset: Any, columns: ImageColumns) -> None:
    """Warn, once, of groups that have images of most classes: the worst of them is rarely what is meant."""
    groups, label = columns.groups, columns.label
    if groups is None or groups.function is not None or label in groups.columns or label is None or columns.several:
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
            f"The groups by {' and '.join(map(repr, groups.columns))} have images of most classes. Worst-group "
            "accuracy is usually over combinations of class and attribute, some of which may be far worse: for these, "
            f"set group_column={[label, *groups.columns]!r}. This warning is given once."
        )


def group_names(dataset: Any, columns: ImageColumns) -> set[str] | None:
    """The groups that have rows, or None if that would mean reading images."""
    if is_iterable(dataset) or not hasattr(dataset, "features"):
        return None
    groups = columns.groups
    assert columns.label is not None
    used = [columns.label] if groups is None else [column for column in groups.columns if column != columns.image]
    if groups is None:
        return {columns.group_of({columns.label: value}) for value in distinct_values(dataset, columns.label)}
    rows = zip(*(read_column(dataset, column) for column in used), strict=True)
    return {columns.group_of(dict(zip(used, row, strict=True))) for row in rows}


def distinct_values(dataset: Any, column: str) -> list[Any]:
    """The distinct values of a column of a `datasets` Dataset."""
    values = np.asarray(read_column(dataset, column))
    if values.dtype == object and any(value is None for value in values.flat):
        raise ValueError(missing_label(column))
    return np.unique(values).tolist()


def read_column(dataset: Any, column: str) -> list[Any]:
    """All values of a column of a `datasets` Dataset, without decoding the other columns."""
    if is_iterable(dataset):
        raise ValueError(
            f"the values of column {column!r} of an iterable dataset are not known in advance; pass class_names=[...]"
        )
    return dataset.select_columns([column]).with_format(None)[column][:]
