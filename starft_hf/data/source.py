"""What is known about a dataset without reading it."""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset


def column_names(dataset: Any) -> list[str] | None:
    """The columns of `dataset`, or None for an iterable dataset that does not name them."""
    names = getattr(dataset, "column_names", None)
    if names is None and not is_iterable(dataset) and len(dataset):
        first = dataset[0]
        if not isinstance(first, Mapping):
            raise TypeError(
                f"rows of the {type(dataset).__name__} are of type {type(first).__name__}; rows must be mappings "
                "such as {'image': ..., 'label': ...}"
            )
        names = list(first)
    return list(names) if names else None


def is_iterable(dataset: Any) -> bool:
    """Whether rows can only be read in order."""
    return isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__")


def is_fingerprinted(dataset: Any) -> bool:
    """Whether a fingerprint changes with the images of `dataset`: a `datasets` Dataset without a transform."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
