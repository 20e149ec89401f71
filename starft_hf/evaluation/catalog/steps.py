"""Preparation of single benchmarks, where renaming columns is not enough."""

from typing import Any

from datasets import ClassLabel, Value

from starft_hf.evaluation.catalog.columns import find_column, with_values
from starft_hf.evaluation.catalog.entry import BenchmarkEntry


# Where the labels and groups of CelebA come from: attribute, column, and names for 0 and 1.
CELEBA_ATTRIBUTES = (("Blond_Hair", "label", ["dark", "blond"]), ("Male", "sex", ["female", "male"]))


def celeba_attributes(dataset: Any, entry: BenchmarkEntry) -> Any:
    """The labels and groups of CelebA, from its attributes."""
    for attribute, _, _ in CELEBA_ATTRIBUTES:
        find_column(dataset, [attribute], entry.name, f"attribute {attribute}")
    for attribute, column, names in CELEBA_ATTRIBUTES:
        dataset = with_values(dataset, column, attribute, _attribute_index, ClassLabel(names=names))
    return dataset


def _attribute_index(value: Any) -> int:
    # Copies of CelebA have -1 and 1, 0 and 1, or booleans.
    if value not in (-1, 0, 1):
        raise ValueError(f"an attribute of CelebA has the value {value!r}; expected -1 or 0 for no, and 1 for yes")
    return int(value == 1)


def crop_objectnet_border(dataset: Any, entry: BenchmarkEntry) -> Any:
    """The images of ObjectNet without their red frame of two pixels, which is cut off as they are read."""
    return dataset.with_transform(_without_border)


def _without_border(batch: dict[str, Any]) -> dict[str, Any]:
    # Reading other columns alone gives batches without images.
    if "image" not in batch:
        return batch
    return {**batch, "image": [image.crop((2, 2, image.width - 2, image.height - 2)) for image in batch["image"]]}


def fmow_regions(dataset: Any, entry: BenchmarkEntry) -> Any:
    """The regions of FMoW, by index from the arrays that the shards hold, or by name as they are."""
    column = find_column(dataset, ["region", "npy"], entry.name, "region")
    if getattr(dataset.features[column], "dtype", None) in ("string", "large_string"):
        return dataset
    if "region" not in entry.group_names:
        raise ValueError(
            "the dataset for 'fmow' has regions by index, and their names were not passed, so that 'Other' cannot be "
            "excluded. Pass load_benchmark('fmow', group_names={'region': [...]}) with them as they first occur in "
            "rgb_metadata.csv of the download of WILDS (wilds.stanford.edu)"
        )
    if column == "region":
        return dataset
    # The arrays hold region, year and class.
    return with_values(dataset, "region", column, lambda array: int(array[0]), Value("int64"))
