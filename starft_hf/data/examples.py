"""Datasets of examples: rows of a user's dataset, preprocessed, with everything random about them drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from starft_hf.data.captions import CaptionBank, captions_of, inject
from starft_hf.data.columns import ImageColumns
from starft_hf.data.decoding import RAISE, SKIP, BadImageError, ImageReader, Row
from starft_hf.data.image_cache import ImageCache, ImageCacheSettings, check_cacheable
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.randomness import Draw, sample_generator
from starft_hf.data.rgb import ScaledImage, content_hash
from starft_hf.data.shuffling import Shuffle
from starft_hf.data.source import is_iterable
from starft_hf.data.streams import Share, are_rows_cheap
from starft_hf.data.workers import spare_worker
from starft_hf.utils.collectives import NO_SAMPLE


Example = dict[str, Any]


class Epoch:
    """The current epoch, in memory shared with worker processes, so that persistent workers see it change."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def value(self) -> int:
        return int(self._value)

    @value.setter
    def value(self, epoch: int) -> None:
        self._value.fill_(epoch)


@dataclass
class ImageExampleMaker:
    """Makes examples of the images of rows: the image's tensors under "image", and "sample"."""

    columns: ImageColumns
    preprocessor: ImagePreprocessor

    def __call__(self, rows: Sequence[Row], samples: Sequence[int], where: Sequence[str]) -> list[Example]:
        """The examples of rows, which are called `where` in errors."""
        images = self._preprocess([row[self.columns.image] for row in rows], samples)
        examples = []
        for row, sample, place, image in zip(rows, samples, where, images, strict=True):
            try:
                examples.append({"image": image, "sample": sample, **self.targets(row, sample)})
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
        return examples

    def blank(self, sample: int) -> Example:
        """An example with a black image, in place of one that does not count."""
        (image,) = self._preprocess([ScaledImage(Image.new("RGB", (256, 256)), (256, 256))], [sample])
        return {"image": image, "sample": sample, **self.blank_targets(sample)}

    def targets(self, row: Row, sample: int) -> Example:
        """Everything of an example but its image."""
        return {}

    def blank_targets(self, sample: int) -> Example:
        """The targets of a blank example."""
        return {}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that random draws depend on."""

    def in_epoch(self, epoch: int) -> "ImageExampleMaker":
        """A maker whose draws depend on this epoch, whatever is set."""
        return self

    def _preprocess(self, images: Sequence[ScaledImage], samples: Sequence[int]) -> list[dict[str, Tensor]]:
        return self.preprocessor.of_scaled(images)


@dataclass
class EvaluationExampleMaker(ImageExampleMaker):
    """Makes evaluation examples of rows: "label", or "targets" if rows have several, and "group" beside the image."""

    def targets(self, row: Row, sample: int) -> Example:
        return {**self.columns.targets_of(row), "group": self.columns.group_of(row)}

    def blank_targets(self, sample: int) -> Example:
        return {**self.columns.targets_of(None), "group": ""}


@dataclass
class TrainingExampleMaker(ImageExampleMaker):
    """Makes training examples of rows, with "caption", "spurious_caption", "label" and ids where known."""

    bank: CaptionBank
    seed: int
    epoch: Epoch
    with_spurious_captions: bool = True

    def targets(self, row: Row, sample: int) -> Example:
        caption = None
        if self.columns.caption is not None:
            choices = captions_of(row[self.columns.caption], self.columns.caption)
            # Of several captions of an image, one is drawn in every epoch.
            drawn = 0 if len(choices) == 1 else self._generator(sample, Draw.CAPTION).integers(len(choices))
            caption = choices[int(drawn)]
        return self._targets(row, sample, caption)

    def _targets(self, row: Row, sample: int, caption: str | None) -> Example:
        example: Example = {}
        bank, label, class_name = self.bank, None, None
        if self.columns.label is not None:
            label = example["label"] = self.columns.label_of(row)
            class_name = bank.class_names[label]
        spurious = self._draw_spurious(sample, class_name)
        if caption is not None:
            example["caption"] = caption
            if spurious is not None and bank.pool is not None:
                example["spurious_caption"] = inject(bank.pool.templates[spurious], caption, class_name)
        elif label is not None:
            template = int(self._generator(sample, Draw.CAPTION_TEMPLATE).integers(len(bank.caption_templates)))
            example["caption"] = bank.caption(label, template)
            example["caption_id"] = bank.caption_id(label, template)
            if spurious is not None:
                example["spurious_caption"] = bank.spurious_caption(label, template, spurious)
                example["spurious_id"] = bank.spurious_id(label, template, spurious)
        return example

    def blank_targets(self, sample: int) -> Example:
        columns = self.columns
        row = {columns.label: columns.labels.first} if columns.label and columns.labels else {}
        return self._targets(row, sample, None if self.columns.caption is None else "")

    def set_epoch(self, epoch: int) -> None:
        self.epoch.value = epoch

    def in_epoch(self, epoch: int) -> "TrainingExampleMaker":
        own = replace(self, epoch=Epoch())
        own.set_epoch(epoch)
        return own

    def _preprocess(self, images: Sequence[ScaledImage], samples: Sequence[int]) -> list[dict[str, Tensor]]:
        if self.preprocessor.deterministic:
            return self.preprocessor.of_scaled(images)
        return self.preprocessor.of_scaled(images, [self._generator(sample, Draw.TRANSFORM) for sample in samples])

    def _draw_spurious(self, sample: int, class_name: str | None) -> int | None:
        pool = self.bank.pool
        if pool is None or not self.with_spurious_captions:
            return None
        return 0 if len(pool) == 1 else pool.draw(self._generator(sample, Draw.SPURIOUS_TEMPLATE), class_name)

    def _generator(self, sample: int, draw: Draw) -> np.random.Generator:
        return sample_generator(self.seed, self.epoch.value, sample, draw)


class IndexedExamples(Dataset[Example]):
    """Examples of a dataset whose rows can be read in any order; a sample is identified by its index.

    A sampler may ask for a row again as `index + k * len(self)`: what is drawn for it is drawn anew then.

    An image that cannot be read is an error if `on_bad_image` is "raise". "skip" keeps its row in place as a blank
    example, with `False` under "valid" and the reason under "bad_image". With the settings of a `cache`, images are
    read from it once it is prepared.
    """

    def __init__(
        self,
        dataset: Any,
        make: ImageExampleMaker,
        on_bad_image: str = RAISE,
        cache: ImageCacheSettings | None = None,
    ):
        self.cache: ImageCache | None = None
        if cache is not None:
            self.cache = ImageCache(cache, dataset, make.columns.image, make.preprocessor, on_bad_image)
        self.make = make
        self.columns = make.columns
        self.on_bad_image = on_bad_image
        # Whether a sampler may ask for `NO_SAMPLE`, which gives a blank example. Then, and with "skip", every example
        # says under "valid" whether it is a sample.
        self.padded = False
        # Samples that are skipped without reading them again, so that all parts of a run agree on them.
        self.unreadable: set[int] = set()
        if hasattr(dataset, "select_columns"):
            dataset = dataset.select_columns(self.columns.used)
        self.dataset = dataset

    def prepare(self, device: torch.device) -> None:
        """Fill the cache of images, if there is one, by all processes together."""
        if self.cache is not None:
            self.cache.prepare(device)

    @cached_property
    def _reader(self) -> ImageReader:
        preprocessor = self.make.preprocessor if self.cache is None else self.cache.preprocessor
        return ImageReader(self.dataset, self.columns.image, preprocessor)

    @cached_property
    def _other_columns(self) -> Any:
        """The dataset without its images; None if nothing is left."""
        others = [column for column in self.columns.used if column != self.columns.image]
        return self.dataset.select_columns(others) if others else None

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes create their own, instead of receiving further datasets.
        return {name: value for name, value in vars(self).items() if name not in ("_reader", "_other_columns")}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        if index >= len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        spare_worker()
        indices = [int(index) for index in indices]
        samples = [index if index == NO_SAMPLE else index % len(self) for index in indices]
        read = [self._read(sample) for sample in samples]
        rows = {place: row for place, row in enumerate(read) if isinstance(row, dict)}
        where = [f"row {samples[place]}" for place in rows]
        made = dict(zip(rows, self.make(list(rows.values()), [indices[place] for place in rows], where), strict=True))
        examples = []
        for place, sample in enumerate(samples):
            example = made[place] if place in made else self.make.blank(max(0, sample))
            example["sample"] = max(0, sample)
            if self.padded or self.on_bad_image == SKIP:
                example["valid"] = place in made
            if isinstance(read[place], str):
                example["bad_image"] = read[place]
            examples.append(example)
        return examples

    def _read(self, index: int) -> Row | str | None:
        """A row, or the reason why it is skipped, or None for `NO_SAMPLE`."""
        if index == NO_SAMPLE:
            return None
        if index in self.unreadable:
            return f"the image of row {index} could not be read when the reference's embeddings were computed"
        try:
            return self._reader.row(index) if self.cache is None else self._cached_row(self.cache, index)
        except BadImageError as error:
            if self.on_bad_image != SKIP:
                raise
            return str(error)

    def _cached_row(self, cache: ImageCache, index: int) -> Row:
        column = self.columns.image
        if (image := cache.image(index)) is not None:
            return {**({} if self._other_columns is None else self._other_columns[index]), column: image}
        row = self._reader.row(index)
        return {**row, column: cache.recomputed(index, row[column])}

    def is_readable(self, index: int) -> bool:
        """Whether the image of a row can be read now."""
        try:
            self._reader.row(index)
        except BadImageError:
            return False
        return True

    def set_epoch(self, epoch: int) -> None:
        self.make.set_epoch(epoch)


class IterableExamples(IterableDataset[Example]):
    """Examples of a dataset that can only be read in order; a sample is identified by a hash of its pixels.

    The number of a row would not do: it depends on shards, workers and the shuffle buffer. With `shuffle`, as for
    training, pass follows on pass without end, so that a resumed run skips what was seen in earlier passes as well,
    and the examples are those of `share`.
    """

    def __init__(
        self, dataset: Any, make: ImageExampleMaker, on_bad_image: str = RAISE, shuffle: Shuffle | None = None
    ):
        self.make = make
        self.shuffle = shuffle
        self.columns = make.columns
        self.on_bad_image = on_bad_image
        self.reader = ImageReader(dataset, self.columns.image, make.preprocessor)
        self.dataset = self.reader.dataset
        self.share = Share()

    def __iter__(self) -> Iterator[Example]:
        spare_worker()
        if self.shuffle is None:
            yield from self._evaluated()
            return
        share, first, size = self.share.of_this_worker(self.dataset), 0, None
        unused = tiny(self._blank(self.make)) if share.start else {}
        for number in count():
            # Nothing of a pass is needed if it ends before the start and is as long as the last one.
            is_over = size is not None and are_rows_cheap(self.dataset) and first + size <= share.first_row
            rows = range(size or 0) if is_over else self.shuffle.rows(self.dataset, number, self.columns.used)
            make, index = self.make.in_epoch(number), -1
            for index, row in enumerate(rows):
                step = share.step_of(first + index)
                if step is not None:
                    yield unused if step < share.start else self.example(row, index, make)
            size = index + 1
            first += size
            if size == 0:
                return

    def _evaluated(self) -> Iterator[Example]:
        """The examples of this process in one pass, and blank ones that are not valid to fill the last step."""
        share, index = self.share, -1
        for index, row in enumerate(self.dataset):
            if share.step_of(index) is not None:
                yield self.example(row, index)
        rest = (index + 1) % (share.batch_size * share.world_size)
        if rest and share.world_size > 1:
            own = min(max(rest - share.rank * share.batch_size, 0), share.batch_size)
            for _ in range(share.batch_size - own):
                yield {**self._blank(self.make), "valid": False}

    @property
    def _says_valid(self) -> bool:
        return self.on_bad_image == SKIP or (self.shuffle is None and self.share.world_size > 1)

    def example(self, row: Row, index: int, make: ImageExampleMaker | None = None) -> Example:
        """The example of a row of `dataset`, the one of this number; by default by the maker of this epoch."""
        make = make or self.make
        where = f"row {index} of the iterable dataset"
        try:
            opened = self.reader.opened(row, where)
        except BadImageError as error:
            if self.on_bad_image != SKIP:
                raise
            return {**self._blank(make), "valid": False, "bad_image": str(error)}
        example = make([opened], [content_hash(opened[self.columns.image].image)], [where])[0]
        return {**example, "valid": True} if self._says_valid else example

    def _blank(self, make: ImageExampleMaker) -> Example:
        return {**make.blank(0), "valid": True} if self._says_valid else make.blank(0)


def tiny(example: Example) -> Example:
    """An example whose tensors are cut to one number each, for batches that are thrown away."""
    image = {name: value[(slice(1),) * value.dim()] for name, value in example["image"].items()}
    return {**example, "image": image}


Examples = IndexedExamples | IterableExamples


def as_examples(
    dataset: Any,
    make: ImageExampleMaker,
    on_bad_image: str = RAISE,
    shuffle: Shuffle | None = None,
    cache: ImageCacheSettings | None = None,
) -> Examples:
    """The examples that `make` makes of the rows of `dataset`; `shuffle` is for iterable training sets."""
    if cache is not None:
        check_cacheable(dataset, "the dataset")
    if is_iterable(dataset):
        return IterableExamples(dataset, make, on_bad_image, shuffle)
    return IndexedExamples(dataset, make, on_bad_image, cache)


def image_examples(examples: IndexedExamples, preprocessor: ImagePreprocessor | None = None) -> IndexedExamples:
    """The images of `examples` without targets, with the same preprocessor or another; `unreadable` is theirs too."""
    columns = ImageColumns(examples.columns.image, label=None, caption=None, groups=None, labels=None)
    maker = ImageExampleMaker(columns, preprocessor or examples.make.preprocessor)
    images = IndexedExamples(examples.dataset, maker, examples.on_bad_image)
    images.unreadable, images.cache = examples.unreadable, examples.cache
    return images
