"""Evaluation sets whose labels stand for classes of a classifier, as those of ImageNet-R or ObjectNet do."""

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_evaluation_columns
from starft_hf.utils.names import unknown_name


# For every label the indices of the classes that stand for it.
ClassMapping = Sequence[Sequence[int]]


def resolve_mapped_columns(
    dataset: Any,
    settings: ColumnSettings,
    class_mapping: ClassMapping,
    class_names: Sequence[str] | None,
    *,
    what: str,
) -> ImageColumns:
    """`resolve_evaluation_columns` for a data set whose labels stand for classes of a classifier.

    Labels are called by the ClassLabel column's names, or else by the first class that stands for them.

    Args:
        dataset: the evaluation set.
        settings: which columns hold what.
        class_mapping: for every label the indices into `class_names`.
        class_names: the classes of the classifier.
        what: how messages call the data set.

    Raises:
        ValueError: as `resolve_evaluation_columns`; or if the mapping is of other labels or classes.
    """
    if class_names is None:
        raise ValueError("class_mapping gives indices into class_names; pass class_names as well")
    check_mapping(class_mapping, class_names)
    columns = resolve_evaluation_columns(
        dataset,
        dataclasses.replace(settings, caption_column=None, class_names=None),
        what=what,
        default_class_names=[class_names[indices[0]] for indices in class_mapping],
    )
    labels = len(columns.class_names or ())
    if labels != len(class_mapping):
        raise ValueError(
            f"class_mapping is for {len(class_mapping)} labels, but column {columns.label!r} has {labels} classes; "
            "map every one of them"
        )
    mapping = tuple(tuple(map(int, indices)) for indices in class_mapping)
    return dataclasses.replace(columns, classifier=tuple(class_names), class_mapping=mapping)


def resolve_classes(
    dataset: Any,
    settings: ColumnSettings,
    class_mapping: ClassMapping | None,
    class_names: Sequence[str] | None,
    *,
    what: str,
) -> ImageColumns:
    """The columns of an evaluation set of a run, with its own classes: by a mapping, by name or the run's.

    Args:
        dataset: the evaluation set.
        settings: which columns hold what.
        class_mapping: for every label the indices into `class_names`, or None where the labels are the classes.
        class_names: the classes of the training set.
        what: how messages call the data set.

    Raises:
        ValueError: as `resolve_mapped_columns`.
    """
    if class_mapping is not None:
        names = class_names or settings.class_names
        return resolve_mapped_columns(dataset, settings, class_mapping, names, what=what)
    return resolve_evaluation_columns(
        dataset,
        settings,
        what=what,
        default_class_names=class_names,
        own_order=True,
    )


def check_mapping(mapping: ClassMapping, class_names: Sequence[str]) -> None:
    """Check that every class of a data set is mapped to classes that the classifier has.

    Raises:
        ValueError: naming the first label that is not.
    """
    if isinstance(mapping, Mapping):
        raise ValueError("class_mapping is a dictionary; pass a list with the indices for label 0, 1, ... in order")
    for label, indices in enumerate(mapping):
        if not isinstance(indices, Sequence | np.ndarray) or not all(map(_is_index, indices)):
            raise ValueError(
                f"class_mapping has {indices!r} for label {label}; pass a list of indices into class_names for every "
                "label, such as [[0], [1, 2]]"
            )
        if len(indices) == 0:
            raise ValueError(f"class_mapping has no class for label {label}")
        wrong = [index for index in indices if not 0 <= index < len(class_names)]
        if wrong:
            raise ValueError(
                f"class_mapping has index {wrong[0]} for label {label}, but there are {len(class_names)} class names"
            )


def check_mapped_sets(class_mapping: Any, eval_dataset: Any) -> None:
    """Check that mappings are those of the evaluation sets there are, by name where there are several.

    Raises:
        ValueError: if one names a set there is not, or none of several is named.
    """
    if class_mapping is None or not isinstance(eval_dataset, dict):
        return
    if not isinstance(class_mapping, Mapping):
        raise ValueError(
            f"there are the evaluation sets {list(eval_dataset)}; pass class_mapping as a dictionary with the mapping "
            "of every set whose labels stand for other classes"
        )
    for name in class_mapping:
        if name not in eval_dataset:
            raise ValueError(f"class_mapping: {unknown_name('evaluation set', name, list(eval_dataset))}")


def _is_index(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
