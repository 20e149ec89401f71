"""What is known about a dataset without reading it."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict


def column_names(dataset: Any) -> list[str] | None:
    """The columns of `dataset`, or None for an iterable dataset that does not name them."""
    names = getattr(dataset, "column_names", None)
    if names is None and not is_iterable(dataset) and len(dataset):
        first = dataset[0]
        check_row(first, f"rows of the {type(dataset).__name__} are", _advice_on_pairs(dataset, first))
        names = list(first)
    return list(names) if names else None


def check_row(row: Any, what_is: str, advice: str = "") -> None:
    """Raise TypeError unless a row is a mapping; `what_is` names it, with its verb."""
    if not isinstance(row, Mapping):
        raise TypeError(
            f"{what_is} of type {type(row).__name__}; rows must be mappings such as "
            f"{{'image': ..., 'label': ...}}{advice}"
        )


def _advice_on_pairs(dataset: Any, first: Any) -> str:
    """How to pass pairs of an image and a label, as torchvision's datasets have them."""
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        return ""
    root = getattr(dataset, "root", None) if hasattr(dataset, "class_to_idx") else None
    folder = (
        f"if it is a folder of images by class, pass load_splits({str(root)!r})['train']; or else " if root else ""
    )
    names = ", and set class_names=list(dataset.classes)" if hasattr(dataset, "classes") else " and set class_names"
    rows = "Dataset.from_list([{'image': image, 'label': label} for image, label in dataset])"
    return f"; {folder}pass datasets.{rows}{names}"


def check_dataset(dataset: Any, what: str) -> None:
    """Check that `dataset` is a dataset rather than something that one is made of."""
    library = type(dataset).__module__.partition(".")[0]
    kind = type(dataset).__name__ if library == "builtins" else f"{library} {type(dataset).__name__}"
    images = ".cast_column('image', datasets.Image())"
    advice = None
    if isinstance(dataset, (str, PathLike)):
        advice = f"load it: load_splits({str(dataset)!r}) from starft_hf.data.loading has its splits by name"
    elif isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        kind, advice = f"dictionary with the splits {sorted(dataset)}", "pass one of them"
    elif isinstance(dataset, Mapping):
        kind, advice = f"dictionary with {sorted(map(str, dataset))}", f"pass Dataset.from_dict(...){images}"
    elif hasattr(dataset, "iloc"):
        advice = f"pass datasets.Dataset.from_pandas(frame){images}"
    elif library == "polars":
        advice = f"pass datasets.Dataset.from_polars(frame){images}"
    elif library == "pyarrow":
        advice = f"pass datasets.Dataset(table){images}"
    if advice is not None:
        raise ValueError(f"{what} is a {kind}; {advice}")


def plain(value: Any) -> Any:
    """A Python value for the scalars and arrays of torch, NumPy, JAX and others."""
    if isinstance(value, (str, int, float, list)) or value is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return np.asarray(value).tolist() if hasattr(value, "__array__") else value


def is_iterable(dataset: Any) -> bool:
    """Whether rows can only be read in order."""
    return isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__")


def is_fingerprinted(dataset: Any) -> bool:
    """Whether a fingerprint changes with the images of `dataset`: a `datasets` Dataset without a transform."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"
