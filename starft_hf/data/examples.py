"""Data sets of examples: rows of a user's data set, preprocessed and with everything random about them drawn."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from starft_hf.data.captions import CaptionBank
from starft_hf.data.columns import ImageColumns
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.randomness import Draw, sample_generator
from starft_hf.data.source import is_stream
from starft_hf.distributed import NO_SAMPLE
from starft_hf.interruption import spare_worker


Row = dict[str, Any]
Example = dict[str, Any]


class Epoch:
    """The current epoch, in memory that worker processes share, so that persistent workers see it move."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def value(self) -> int:
        return int(self._value)

    @value.setter
    def value(self, epoch: int) -> None:
        self._value.fill_(epoch)


@dataclass
class TrainingExampleMaker:
    """Makes training examples of rows.

    An example has the image's tensors under "image", "sample", "label" and "spurious_id" (where there are labels),
    "caption" and "spurious_caption" (where a loss needs them).
    """

    columns: ImageColumns
    preprocessor: ImagePreprocessor
    bank: CaptionBank
    seed: int
    epoch: Epoch

    def __call__(self, rows: Sequence[Row], samples: Sequence[int]) -> list[Example]:
        generators = None
        if not self.preprocessor.deterministic:
            generators = [sample_generator(self.seed, self.epoch.value, n, Draw.TRANSFORM) for n in samples]
        images = self.preprocessor([row[self.columns.image] for row in rows], generators)
        return [
            {"image": image, "sample": sample, **self._texts(row, sample)}
            for row, sample, image in zip(rows, samples, images, strict=True)
        ]

    def _draw(self, sample: int, draw: Draw, choices: int) -> int:
        if choices == 1:
            return 0
        return int(sample_generator(self.seed, self.epoch.value, sample, draw).integers(choices))

    def _draw_spurious(self, sample: int, label: int | None) -> int | None:
        pool = self.bank.pool
        if pool is None or len(pool) == 1:
            return None if pool is None else 0
        generator = sample_generator(self.seed, self.epoch.value, sample, Draw.SPURIOUS_TEMPLATE)
        return pool.draw(generator, self.bank.class_names[label] if label is not None else None)

    def _texts(self, row: Row, sample: int) -> Example:
        example: Example = {}
        label = None
        if self.columns.label is not None:
            label = example["label"] = self.columns.label_of(row)
        pool = self.bank.pool
        spurious_template = self._draw_spurious(sample, label)
        if self.columns.caption is not None:
            example["caption"] = row[self.columns.caption]
            if pool is not None and spurious_template is not None:
                class_name = self.bank.class_names[label] if label is not None else None
                example["spurious_caption"] = pool.inject(example["caption"], class_name, spurious_template)
        elif label is not None:
            template = self._draw(sample, Draw.CAPTION_TEMPLATE, len(self.bank.caption_templates))
            example["caption"] = self.bank.caption(label, template)
            if spurious_template is not None:
                drawn = (label, template, spurious_template)
                example["spurious_caption"] = self.bank.spurious_caption(*drawn)
                example["spurious_id"] = self.bank.spurious_id(*drawn)
        return example


@dataclass
class EvaluationExampleMaker:
    """Makes evaluation examples of rows: deterministic tensors, label and group."""

    columns: ImageColumns
    preprocessor: ImagePreprocessor

    def __call__(self, rows: Sequence[Row], samples: Sequence[int]) -> list[Example]:
        images = self.preprocessor([row[self.columns.image] for row in rows])
        examples = []
        for row, sample, image in zip(rows, samples, images, strict=True):
            label = self.columns.label_of(row)
            examples.append({"image": image, "sample": sample, "label": label, "group": self.group(row)})
        return examples

    def group(self, row: Row) -> str:
        """The name of the group of a row; where no column says, its class."""
        if self.columns.groups is not None:
            return self.columns.groups.of(row)
        assert self.columns.class_names is not None
        return self.columns.class_names[self.columns.label_of(row)]


@dataclass
class ImageExampleMaker:
    """Makes examples of the images of rows alone, deterministically preprocessed."""

    columns: ImageColumns
    preprocessor: ImagePreprocessor

    def __call__(self, rows: Sequence[Row], samples: Sequence[int]) -> list[Example]:
        images = self.preprocessor([row[self.columns.image] for row in rows])
        return [{"image": image, "sample": sample} for image, sample in zip(images, samples, strict=True)]


ExampleMaker = TrainingExampleMaker | EvaluationExampleMaker | ImageExampleMaker


class IndexedExamples(Dataset[Example]):
    """Examples of a data set whose rows can be read in any order; a sample is known by its index.

    Attributes:
        padded: whether a sampler may ask for `NO_SAMPLE`. It then gets the first sample, and every example says under
            "valid" whether it is one.
    """

    def __init__(self, dataset: Any, make: ExampleMaker):
        self.make = make
        self.padded = False
        if hasattr(dataset, "select_columns"):
            dataset = dataset.select_columns(make.columns.used)
        self.dataset = dataset

    @property
    def columns(self) -> ImageColumns:
        return self.make.columns

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        spare_worker()
        samples = [0 if index == NO_SAMPLE else int(index) for index in indices]
        examples = self.make([self.dataset[sample] for sample in samples], samples)
        if self.padded:
            for example, index in zip(examples, indices, strict=True):
                example["valid"] = index != NO_SAMPLE
        return examples

    def set_epoch(self, epoch: int) -> None:
        set_epoch(self.make, epoch)


class StreamedExamples(IterableDataset[Example]):
    """Examples of a data set that can only be read in order; a sample is known by a hash of its pixels.

    Numbering the rows would not do: their order depends on shards, workers and the shuffle buffer.
    """

    def __init__(self, dataset: Any, make: ExampleMaker):
        self.make = make
        self.dataset = dataset

    @property
    def columns(self) -> ImageColumns:
        return self.make.columns

    def __iter__(self) -> Iterator[Example]:
        spare_worker()
        for row in self.dataset:
            yield self.make([row], [content_hash(row[self.columns.image])])[0]

    def set_epoch(self, epoch: int) -> None:
        set_epoch(self.make, epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def set_epoch(make: ExampleMaker, epoch: int) -> None:
    """Move the epoch that the draws of training examples depend on."""
    if isinstance(make, TrainingExampleMaker):
        make.epoch.value = epoch


def content_hash(image: Any) -> int:
    """63 bits of a hash of an image's size and pixels."""
    pixels = np.asarray(image)
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


Examples = IndexedExamples | StreamedExamples


def as_examples(dataset: Any, make: ExampleMaker) -> Examples:
    """The examples that `make` makes of the rows of `dataset`."""
    return StreamedExamples(dataset, make) if is_stream(dataset) else IndexedExamples(dataset, make)


def evaluation_examples(dataset: Any, columns: ImageColumns, image_processor: Any) -> Examples:
    """The evaluation examples of `dataset`."""
    maker = EvaluationExampleMaker(columns, ImagePreprocessor(image_processor))
    return as_examples(dataset, maker)


def image_examples(examples: IndexedExamples) -> IndexedExamples:
    """The images of `examples` alone, preprocessed as they are."""
    columns = ImageColumns(examples.columns.image, label=None, caption=None, groups=None, class_names=None)
    return IndexedExamples(examples.dataset, ImageExampleMaker(columns, examples.make.preprocessor))
