"""How several processes share the rows of an iterable dataset, and which datasets let them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Parts of an IterableDataset that compute nothing and whose shards can be read one by one.
_PLAIN = {
    "ArrowExamplesIterable",
    "ExamplesIterable",
    "FormattedExamplesIterable",
    "RebatchedArrowExamplesIterable",
    "SelectColumnsIterable",
}
# The module of what reads the shards of `Dataset.to_iterable_dataset`.
_IN_MEMORY = "datasets.arrow_dataset"
# Shards that are read in turn, and rows of each at a time.
_OPEN_SHARDS = 10
_AT_ONCE = 32


@dataclass(frozen=True)
class Share:
    """Which rows are those of a process, of rows that all processes go through in the same order.

    Every step takes the next `batch_size` rows for each of `world_size` processes, in turn. Of the workers of a
    process, each takes every n-th step. Rows of others are skipped without opening their images.

    Attributes:
        batch_size: rows of a process in a step.
        rank: which of the processes it is.
        world_size: the number of processes.
        worker: which of the workers of a process it is.
        workers: their number.
        start: the first step whose examples are used; a resumed run throws those before it away.
    """

    batch_size: int = 1
    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1
    start: int = 0

    @property
    def first_row(self) -> int:
        """The first row of the step that is the start, in the order of all processes."""
        return self.start * self.batch_size * self.world_size

    def of_this_worker(self, dataset: Any) -> "Share":
        """The share of the worker process that calls this.

        If rows are cheap, all workers go through all, so that the order does not depend on their number and every row
        occurs once in a pass, whatever the sizes of shards. Otherwise `datasets` gives each worker some of the shards,
        and steps are counted by each for itself.
        """
        worker = get_worker_info()
        if worker is None:
            return self
        if not are_rows_cheap(dataset):
            return replace(self, start=0)
        return replace(self, worker=worker.id, workers=worker.num_workers)

    def step_of(self, row: int) -> int | None:
        """The step for which this process takes a row, given by its number in the order; None if another one does."""
        step, place = divmod(row, self.batch_size * self.world_size)
        is_own = place // self.batch_size == self.rank and step % self.workers == self.worker
        return step if is_own else None


def is_shuffled(dataset: Any) -> bool:
    """Whether `shuffle` was called on a `datasets` IterableDataset, as far as can be seen."""
    return any("Shuffled" in type(part).__name__ for part in _parts(dataset))


def are_rows_cheap(dataset: Any) -> bool:
    """Whether rows of a `datasets` IterableDataset are local and nothing is computed for them, as far as can be seen.

    Images may be in files that are not opened yet.
    """
    if not isinstance(dataset, IterableDataset) or dataset._formatting is not None or dataset._distributed is not None:
        return False
    parts = list(_parts(dataset))
    return all(type(part).__name__ in _PLAIN for part in parts) and _is_local(parts[-1])


def all_rows(dataset: IterableDataset) -> Iterator[Any]:
    """All rows in their order, in a worker process as well, where plain iteration leaves out shards of others."""
    for batch in dataset.iter(batch_size=_AT_ONCE):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def all_rows_mixed(dataset: IterableDataset, generator: np.random.Generator) -> Iterator[Any]:
    """All rows, of several shards in turn, which are in random order."""
    number = dataset.num_shards
    waiting = (dataset.shard(num_shards=number, index=int(shard)) for shard in generator.permutation(number))
    opened: deque[Iterator[Any]] = deque()
    while True:
        while len(opened) < _OPEN_SHARDS and (shard := next(waiting, None)) is not None:
            opened.append(all_rows(shard))
        if not opened:
            return
        rows = opened.popleft()
        if (row := next(rows, None)) is not None:
            yield row
            opened.append(rows)


def warn_of_shards(dataset: Any, workers: int) -> None:
    """Warn if the rows or shards of a training set cannot be divided evenly among the workers of a process."""
    if workers == 0 or are_rows_cheap(dataset):
        return
    if not isinstance(dataset, IterableDataset):
        warn_of_repeated_rows(dataset, workers, "train_dataset")
        return
    shards = dataset.num_shards
    if shards % workers == 0:
        return
    effect = f"{workers - shards} of them stay idle" if shards < workers else "rows of some occur more often"
    logger.warning(
        "train_dataset has %d shards for the %d workers of each process, and each shard is read by one, so %s. Set "
        "dataloader_num_workers to a divisor of %d, write more shards, or load local data with "
        "starft_hf.data.loading.load_splits(folder, streaming=True), whose rows all workers share.",
        *(shards, workers, effect, shards),
    )


def warn_of_repeated_rows(dataset: Any, workers: int, what: str) -> None:
    """Warn if every worker of a process goes through all rows, unless the dataset itself divides them."""
    if workers > 1 and isinstance(dataset, TorchIterableDataset) and not isinstance(dataset, IterableDataset):
        logger.warning(
            "%s is an IterableDataset of torch, and each of the %d workers of a process iterates it: unless it "
            "divides its rows by torch.utils.data.get_worker_info(), every row occurs %d times. Pass a "
            "datasets.IterableDataset, or set dataloader_num_workers to 0.",
            *(what, workers, workers),
        )


def _parts(dataset: Any) -> Iterator[Any]:
    """What an IterableDataset is made of, outermost first."""
    part = getattr(dataset, "_ex_iterable", None)
    while part is not None:
        yield part
        part = getattr(part, "ex_iterable", None)


def _is_local(source: Any) -> bool:
    read = getattr(source, "generate_tables_fn", None) or getattr(source, "generate_examples_fn", None)
    builder = type(getattr(read, "__self__", None))
    return builder.__module__.startswith("starft_hf.") or getattr(read, "__module__", "") == _IN_MEMORY
