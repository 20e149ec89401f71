"""What can be known of a data set without reading it."""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset


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


def is_fingerprinted(dataset: Any) -> bool:
    """Whether `dataset` says when its images change: a `datasets` Dataset without a transform of its own."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
