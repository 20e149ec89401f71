"""Passes over iterable datasets, shuffled with a buffer by the seed and the number of the pass alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import IterableDataset

from starft_hf.data.randomness import Draw, sample_generator
from starft_hf.data.streams import all_rows, all_rows_mixed, are_rows_cheap, is_shuffled


@dataclass(frozen=True)
class Shuffle:
    """How an iterable training set is shuffled: by a seed, with a buffer of so many rows; 0 keeps the order."""

    seed: int
    buffer_size: int

    def rows(self, dataset: Any, number: int, columns: list[str] | None = None) -> Iterable[Any]:
        """The rows of a pass; of a `datasets` IterableDataset, the order of its files or other shards is shuffled too.

        A dataset that was shuffled already keeps its own order, which is another one in every pass.
        """
        generator = sample_generator(self.seed, number, 0, Draw.ORDER)
        has_own_order = is_shuffled(dataset)
        keeps_order = self.buffer_size == 0 or has_own_order
        if not isinstance(dataset, IterableDataset):
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(number)
            return dataset if keeps_order else _shuffled(dataset, generator, self.buffer_size)
        # This makes a new dataset. Setting the epoch of the given one would set that of other worker processes.
        dataset = dataset.select_columns(columns) if columns else dataset
        if are_rows_cheap(dataset) and keeps_order:
            return all_rows(dataset)
        if are_rows_cheap(dataset):
            return _shuffled(all_rows_mixed(dataset, generator), generator, self.buffer_size)
        if not keeps_order:
            return dataset.shuffle(generator=generator, buffer_size=self.buffer_size)
        if columns and has_own_order:
            dataset.set_epoch(number)
        return dataset


def _shuffled(rows: Iterable[Any], generator: np.random.Generator, buffer_size: int) -> Iterator[Any]:
    """`rows`, each drawn from a buffer that the next one then fills up."""
    buffer: list[Any] = []
    for row in rows:
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(generator.integers(buffer_size))
        yield buffer[place]
        buffer[place] = row
    yield from (buffer[place] for place in generator.permutation(len(buffer)))
