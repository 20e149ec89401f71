"""Data sets of examples: rows of a user's data set, preprocessed and with everything random about them drawn."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from starft_hf.data.captions import CaptionBank, inject
from starft_hf.data.class_mapping import resolve_classes
from starft_hf.data.columns import ColumnSettings, ImageColumns
from starft_hf.data.decoding import RAISE, SKIP, BadImageError, PictureReader, Row, blank_picture
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.randomness import Draw, sample_generator
from starft_hf.data.source import is_stream
from starft_hf.data.workers import spare_worker
from starft_hf.utils.collectives import NO_SAMPLE


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
    with_spurious_captions: bool = True

    def __call__(self, rows: Sequence[Row], samples: Sequence[int]) -> list[Example]:
        generators = None
        if not self.preprocessor.deterministic:
            generators = [sample_generator(self.seed, self.epoch.value, n, Draw.TRANSFORM) for n in samples]
        images = self.preprocessor.of_pictures([row[self.columns.image] for row in rows], generators)
        return [
            {"image": image, "sample": sample, **self._texts(row, sample)}
            for row, sample, image in zip(rows, samples, images, strict=True)
        ]

    def blank(self, sample: int) -> Example:
        """What takes the place of an example that does not count."""
        row = {self.columns.label: 0, self.columns.caption: "", self.columns.image: blank_picture()}
        return self([row], [sample])[0]  # type: ignore[list-item]

    def _draw(self, sample: int, draw: Draw, choices: int) -> int:
        if choices == 1:
            return 0
        return int(sample_generator(self.seed, self.epoch.value, sample, draw).integers(choices))

    def _draw_spurious(self, sample: int, label: int | None) -> int | None:
        pool = self.bank.pool
        if pool is None or not self.with_spurious_captions:
            return None
        if len(pool) == 1:
            return 0
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
                example["spurious_caption"] = inject(pool.templates[spurious_template], example["caption"], class_name)
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
        images = self.preprocessor.of_pictures([row[self.columns.image] for row in rows])
        examples = []
        for row, sample, image in zip(rows, samples, images, strict=True):
            label = self.columns.label_of(row)
            examples.append({"image": image, "sample": sample, "label": label, "group": self.group(row)})
        return examples

    def blank(self, sample: int) -> Example:
        """What takes the place of an example that does not count."""
        image = self.preprocessor.of_pictures([blank_picture()])[0]
        return {"image": image, "sample": sample, "label": 0, "group": ""}

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
        images = self.preprocessor.of_pictures([row[self.columns.image] for row in rows])
        return [{"image": image, "sample": sample} for image, sample in zip(images, samples, strict=True)]

    def blank(self, sample: int) -> Example:
        """What takes the place of an example that does not count."""
        return self([{self.columns.image: blank_picture()}], [sample])[0]


ExampleMaker = TrainingExampleMaker | EvaluationExampleMaker | ImageExampleMaker


class IndexedExamples(Dataset[Example]):
    """Examples of a data set whose rows can be read in any order; a sample is known by its index.

    Args:
        dataset: the rows, whose pictures need not be RGB nor upright.
        make: makes examples of them.
        on_bad_image: with "raise", a picture that cannot be read is an error. With "skip", its row keeps its place and
            does not count: a blank example stands there, `False` under "valid" and with the reason under "bad_image".

    Attributes:
        padded: whether a sampler may ask for `NO_SAMPLE`. It then gets a blank example. Every example says under
            "valid" whether it is a sample, here and with "skip".
        unreadable: samples that count as unreadable without another look, so that all parts of a run agree on them.
    """

    def __init__(self, dataset: Any, make: ExampleMaker, on_bad_image: str = RAISE):
        self.make = make
        self.on_bad_image = on_bad_image
        self.padded = False
        self.unreadable: set[int] = set()
        if hasattr(dataset, "select_columns"):
            dataset = dataset.select_columns(make.columns.used)
        self.dataset = dataset

    @property
    def columns(self) -> ImageColumns:
        return self.make.columns

    @cached_property
    def _reader(self) -> PictureReader:
        return PictureReader(self.dataset, self.columns.image, self.make.preprocessor)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes make it anew, rather than being sent a second data set.
        return {name: value for name, value in vars(self).items() if name != "_reader"}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        spare_worker()
        rows: dict[int, Row] = {}
        reasons: dict[int, str] = {}
        for place, index in enumerate(indices):
            if index == NO_SAMPLE:
                continue
            if index in self.unreadable:
                reasons[place] = (
                    f"the image of row {index} could not be read when the reference's was to be remembered"
                )
                continue
            try:
                rows[place] = self._reader.row(int(index))
            except BadImageError as error:
                if self.on_bad_image != SKIP:
                    raise
                reasons[place] = str(error)
        made = dict(zip(rows, self.make(list(rows.values()), [int(indices[place]) for place in rows]), strict=True))
        examples = []
        for place, index in enumerate(indices):
            example = made[place] if place in made else self.make.blank(max(0, int(index)))
            if self.padded or self.on_bad_image == SKIP:
                example["valid"] = place in made
            if place in reasons:
                example["bad_image"] = reasons[place]
            examples.append(example)
        return examples

    def is_readable(self, index: int) -> bool:
        """Whether the picture of a row can be read now."""
        try:
            self._reader.row(index)
        except BadImageError:
            return False
        return True

    def set_epoch(self, epoch: int) -> None:
        set_epoch(self.make, epoch)


class StreamedExamples(IterableDataset[Example]):
    """Examples of a data set that can only be read in order; a sample is known by a hash of its pixels.

    Numbering the rows would not do: their order depends on shards, workers and the shuffle buffer.

    Args:
        dataset: the rows.
        make: makes examples of them.
        on_bad_image: as in `IndexedExamples`.
    """

    def __init__(self, dataset: Any, make: ExampleMaker, on_bad_image: str = RAISE):
        self.make = make
        self.on_bad_image = on_bad_image
        self.reader = PictureReader(dataset, make.columns.image, make.preprocessor)
        self.dataset = self.reader.dataset

    @property
    def columns(self) -> ImageColumns:
        return self.make.columns

    def __iter__(self) -> Iterator[Example]:
        spare_worker()
        for row, where in self.reader.rows():
            try:
                opened = self.reader.opened(row, where)
            except BadImageError as error:
                if self.on_bad_image != SKIP:
                    raise
                yield {**self.make.blank(0), "valid": False, "bad_image": str(error)}
                continue
            example = self.make([opened], [content_hash(opened[self.columns.image])])[0]
            yield {**example, "valid": True} if self.on_bad_image == SKIP else example

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


def as_examples(dataset: Any, make: ExampleMaker, on_bad_image: str = RAISE) -> Examples:
    """The examples that `make` makes of the rows of `dataset`."""
    kind = StreamedExamples if is_stream(dataset) else IndexedExamples
    return kind(dataset, make, on_bad_image)


def evaluation_sets(
    dataset: Any,
    settings: ColumnSettings,
    class_names: Sequence[str] | None,
    image_processor: Any,
    *,
    class_mapping: Any = None,
    on_bad_image: str = RAISE,
) -> Any:
    """The evaluation examples of a data set or, by name, of a dictionary of several; what are examples stays.

    Args:
        dataset: one evaluation set, several, or None.
        settings: which columns hold what.
        class_names: the classes of the training set.
        image_processor: of the model.
        class_mapping: for every label the indices into `class_names`; by name for several datasets.
        on_bad_image: as in `IndexedExamples`.

    Raises:
        ValueError: as `resolve_classes`.
    """
    if dataset is None or isinstance(dataset, Examples):
        return dataset
    if isinstance(dataset, dict):
        mappings = class_mapping or {}
        shared = (settings, class_names, image_processor)
        return {
            name: evaluation_sets(part, *shared, class_mapping=mappings.get(name), on_bad_image=on_bad_image)
            for name, part in dataset.items()
        }
    columns = resolve_classes(dataset, settings, class_mapping, class_names, what="eval_dataset")
    return as_examples(dataset, EvaluationExampleMaker(columns, ImagePreprocessor(image_processor)), on_bad_image)


def image_examples(examples: IndexedExamples, preprocessor: ImagePreprocessor | None = None) -> IndexedExamples:
    """The images of `examples` alone, preprocessed as they are or by another preprocessor.

    Both agree on which are unreadable.
    """
    columns = ImageColumns(examples.columns.image, label=None, caption=None, groups=None, class_names=None)
    maker = ImageExampleMaker(columns, preprocessor or examples.make.preprocessor)
    images = IndexedExamples(examples.dataset, maker, examples.on_bad_image)
    images.unreadable = examples.unreadable
    return images
