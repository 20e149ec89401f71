"""The images to classify, as one sequence of rows, and what is known of each."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from datasets import Value, concatenate_datasets
from torch.utils.data import ConcatDataset
from transformers.utils import logging

from starft_hf.data.all_images import NO_SPLIT, AllImages, read_all_images
from starft_hf.data.columns import ImageColumns, read_column
from starft_hf.data.examples import ImageExampleMaker, IndexedExamples, IterableExamples
from starft_hf.data.fingerprint import images_fingerprint
from starft_hf.data.image_cache import ImageCacheSettings
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.labels import class_feature, is_text
from starft_hf.data.source import check_dataset, column_names, is_fingerprinted, is_iterable
from starft_hf.hub.prediction.blocks import StreamedRow
from starft_hf.hub.prediction.rows import Columns, paths_of, resolve, values_of
from starft_hf.hub.prediction.table import GROUP, LABEL, SPLIT
from starft_hf.utils.names import readable


logger = logging.get_logger(__name__)


@dataclass
class RowFacts:
    """What is known of the rows, in their order: the paths of files, labels, groups and splits."""

    paths: list[str | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)

    def add(self, split: str, path: str | None, columns: Columns, row: Mapping[str, Any]) -> None:
        """Add what is known of a row of a split."""
        self.paths.append(path)
        self.labels.append(columns.label_of(row))
        self.groups.append(columns.group_of(row))
        self.splits.append(None if split == NO_SPLIT else split)


def images_of(dataset: Any, image_column: str | None, label_column: str | None) -> AllImages:
    """The images of what `predict` takes as a dataset."""
    if isinstance(dataset, AllImages):
        return dataset
    if isinstance(dataset, (str, os.PathLike)):
        return read_all_images(dataset, image_column=image_column or "image", label_column=label_column or LABEL)
    if not isinstance(dataset, Mapping):
        check_dataset(dataset, "dataset")
        return AllImages({"": dataset})
    for name, part in dataset.items():
        check_dataset(part, f"dataset[{name!r}]")
    return AllImages(dict(dataset))


class Source:
    """The rows of all splits, one after the other.

    Args:
        images: datasets by split, which are all read by index, or are all iterable.
        image: the column with the images; None: "image", or else the only one of images.
        label: the column with the labels; None: "label", where there is one.
        group: columns that name groups.

    Raises:
        ValueError: if there are no rows, or a column is missing.
    """

    def __init__(self, images: AllImages, image: str | None, label: str | None, group: str | Sequence[str] | None):
        self.images = images
        self.parts = list(images.splits.values())
        if not self.parts or not any(is_iterable(part) or len(part) for part in self.parts):
            raise ValueError("dataset is empty; pass one with at least one image")
        groups = [group] if isinstance(group, str) else list(group or ())
        self.columns = [resolve(part, image, label or LABEL, groups) for part in self.parts]
        present = [names for part in self.parts if (names := column_names(part)) is not None]
        wanted = [*((("label_column", label),) if label else ()), *(("group_column", name) for name in groups)]
        for setting, name in wanted if len(present) == len(self.parts) else ():
            if not any(name in names for names in present):
                raise ValueError(
                    f"dataset has no column {name!r}; its columns are {present[0]}. Set {setting} to the right one"
                )
        self.is_iterable = is_iterable(self.parts[0])

    def class_names(self) -> tuple[str, ...] | None:
        """The classes that the labels name, in label order; None where they do not."""
        texts: set[str] = set()
        for part, columns in zip(self.parts, self.columns, strict=True):
            feature = (getattr(part, "features", None) or {}).get(columns.label)
            if class_feature(feature) is not None:
                return tuple(columns.names)
            if columns.label is not None and is_text(feature) and not self.is_iterable:
                texts |= set(read_column(part, columns.label)) - {None}
        return tuple(sorted(texts)) or None

    def set_classes(self, classes: Sequence[str]) -> None:
        """Read labels in terms of the classes of a model: numbers without names are positions in them.

        Names of folders are labels if one of them is a class.
        """
        named = self.class_names() if self.images.labels_are_folders else None
        is_label = not named or not set(map(readable, classes)).isdisjoint(map(readable, named))
        if not is_label and named:
            logger.warning("The folders, such as %r, are not named after classes, so they are not labels.", named[0])
        for place, own in enumerate(self.columns):
            if own.label is None or not is_label:
                self.columns[place] = replace(own, label=None)
            elif not own.names and self._are_positions(place, own.label, classes):
                self.columns[place] = replace(own, names=classes)

    def _are_positions(self, place: int, label: str, classes: Sequence[str]) -> bool:
        """Whether labels that are numbers without names can be positions in the classes; says how they are read."""
        part = self.parts[place]
        feature = (getattr(part, "features", None) or {}).get(label)
        if feature is not None and not (isinstance(feature, Value) and re.match("u?int|float|bool", feature.dtype)):
            return False
        known = [] if self.is_iterable or not hasattr(part, "select_columns") else read_column(part, label)
        beyond = next((it for it in known if it is not None and not -1 <= it < len(classes)), None)
        if beyond is not None:
            logger.warning(
                "The labels in column %r are numbers such as %s, which are not positions in the %d classes; they stay "
                "numbers.",
                *(label, beyond, len(classes)),
            )
        elif feature is not None:
            logger.warning(
                "The labels in column %r are numbers, and are taken as positions in the classes: 0 is %r. Cast the "
                "column to datasets.ClassLabel, or pass class_names in the order of the labels, if that is not so.",
                *(label, classes[0]),
            )
        return beyond is None

    def fingerprint(self) -> str | None:
        """A key of the images in their order; None if there is none.

        Of iterable datasets it is the same for all: their blocks are identified by their content.
        """
        if self.is_iterable:
            return "iterable"
        joined = self.joined
        return images_fingerprint(joined, self.columns[0].image) if is_fingerprinted(joined) else None

    def examples(
        self, preprocessor: ImagePreprocessor, on_bad_image: str, cache: ImageCacheSettings | None
    ) -> IndexedExamples:
        """The examples of all rows, if they are read by index."""
        return IndexedExamples(self.joined, _maker(self.columns[0], preprocessor), on_bad_image, cache)

    def facts(self) -> RowFacts:
        """What is known of all rows, if they are read by index, without reading images."""
        facts = RowFacts()
        for split, part, columns in zip(self.images.splits, self.parts, self.columns, strict=True):
            for path, row in zip(paths_of(part, columns.image), values_of(part, columns), strict=True):
                facts.add(split, path, columns, row)
        return facts

    def stream(self, preprocessor: ImagePreprocessor, on_bad_image: str, facts: RowFacts) -> Iterator[StreamedRow]:
        """The rows of iterable datasets; what is known of each is added to `facts` as it is read."""
        for split, part, columns in zip(self.images.splits, self.parts, self.columns, strict=True):
            examples = IterableExamples(part, _maker(columns, preprocessor), on_bad_image)
            for index, row in enumerate(examples.dataset):
                image = row.get(columns.image)
                facts.add(split, image.get("path") if isinstance(image, dict) else None, columns, row)
                yield StreamedRow(examples, index, row)

    def known(self, facts: RowFacts) -> dict[str, list[str | None]]:
        """The columns of the table that follow the predictions."""
        found = {
            LABEL: (facts.labels, any(own.has_labels for own in self.columns) or any(facts.labels)),
            GROUP: (facts.groups, any(own.groups is not None for own in self.columns)),
            SPLIT: (facts.splits, len(self.parts) > 1),
        }
        return {name: values for name, (values, is_known) in found.items() if is_known}

    @cached_property
    def joined(self) -> Any:
        """The rows of all splits, if they are read by index; of iterable datasets the first."""
        if len(self.parts) == 1 or self.is_iterable:
            return self.parts[0]
        if not all(map(is_fingerprinted, self.parts)):
            return ConcatDataset(self.parts)
        return concatenate_datasets([part.select_columns([self.columns[0].image]) for part in self.parts])


def _maker(columns: Columns, preprocessor: ImagePreprocessor) -> ImageExampleMaker:
    return ImageExampleMaker(ImageColumns(columns.image, None, None, None, None), preprocessor)
