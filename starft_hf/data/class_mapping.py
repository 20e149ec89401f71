"""Evaluation sets whose labels stand for classes of a classifier, such as ImageNet-R's and ObjectNet's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np

from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_evaluation_columns
from starft_hf.utils.names import unknown_name


# For every label the indices of the classes that it stands for.
ClassMapping = Sequence[Sequence[int]]


def resolve_mapped_columns(
    dataset: Any,
    settings: ColumnSettings,
    class_mapping: ClassMapping,
    class_names: Sequence[str] | None,
    *,
    what: str,
) -> ImageColumns:
    """`resolve_evaluation_columns` for a dataset whose labels stand for classes of a classifier.

    Labels have the names of the ClassLabel column, or else of the first class that each stands for.
    """
    if class_names is None:
        raise ValueError("class_mapping gives indices into class_names; pass class_names as well")
    check_mapping(class_mapping, class_names)
    first_classes = [class_names[indices[0]] for indices in class_mapping]
    settings = replace(settings, caption_column=None, class_names=None, default_class_names=first_classes)
    columns = resolve_evaluation_columns(dataset, settings, what=what)
    labels = len(columns.class_names or ())
    if labels != len(class_mapping):
        raise ValueError(
            f"class_mapping is for {len(class_mapping)} labels, but column {columns.label!r} has {labels} classes; "
            "map every one of them"
        )
    mapping = tuple(tuple(map(int, indices)) for indices in class_mapping)
    return replace(columns, classifier=tuple(class_names), class_mapping=mapping)


def check_mapping(mapping: ClassMapping, class_names: Sequence[str]) -> None:
    """Check that every label is mapped to classes of the classifier."""
    if isinstance(mapping, Mapping):
        raise ValueError("class_mapping is a dictionary; pass a list with the indices for label 0, 1, ... in order")
    for label, indices in enumerate(mapping):
        is_list = isinstance(indices, Sequence | np.ndarray)
        if not is_list or any(isinstance(index, bool) or not isinstance(index, Integral) for index in indices):
            raise ValueError(
                f"class_mapping has {indices!r} for label {label}; pass a list of indices into class_names for every "
                "label, such as [[0], [1, 2]]"
            )
        if len(indices) == 0:
            raise ValueError(f"class_mapping has no class for label {label}; pass one index or more")
        for index in indices:
            if not 0 <= index < len(class_names):
                raise ValueError(
                    f"class_mapping has index {index} for label {label}, but there are {len(class_names)} class names"
                )


def check_mapped_sets(class_mapping: Any, eval_dataset: Any) -> None:
    """Check that mappings for several evaluation sets are given by the names of these sets."""
    if class_mapping is None or not isinstance(eval_dataset, dict):
        return
    if not isinstance(class_mapping, Mapping):
        raise ValueError(
            f"the evaluation sets are {list(eval_dataset)}; pass class_mapping as a dictionary with the mapping of "
            "every set whose labels stand for other classes"
        )
    for name in class_mapping:
        if name not in eval_dataset:
            raise ValueError(f"class_mapping: {unknown_name('evaluation set', name, list(eval_dataset))}")
