"""The order of samples over several processes, with the last batch padded by no samples at all."""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import replace
from typing import Any

import torch
from accelerate.data_loader import IterableDatasetShard, SeedableRandomSampler
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from transformers import TrainingArguments

from starft_hf.data.examples import Epoch, IndexedExamples, IterableExamples
from starft_hf.data.strata import Rows, balanced_epoch
from starft_hf.data.streams import Share
from starft_hf.utils.collectives import NO_SAMPLE


CLASS_BALANCED, GROUP_BALANCED = "class_balanced", "group_balanced"
SAMPLING_STRATEGIES = ("random", "sequential", CLASS_BALANCED, GROUP_BALANCED)


class BalancedSampler(Sampler[int]):
    """The rows of the strata, as `balanced_epoch` orders them in the current epoch."""

    def __init__(self, strata: Sequence[Rows], seed: int, epoch: Epoch):
        self.strata = strata
        self.seed = seed
        self.current = epoch

    def __iter__(self) -> Iterator[int]:
        yield from balanced_epoch(self.strata, self.seed, self.current.value).tolist()

    def __len__(self) -> int:
        return sum(map(len, self.strata))


class PaddedSampler(Sampler[int]):
    """A sampler, followed by as many `NO_SAMPLE` as fill the last step of all processes, of `multiple` samples.

    Without them, it would be filled with samples from the beginning, which would count twice. `epoch` gives the epoch
    to samplers that shuffle by it: on resuming within one, Accelerate's wrappers do not pass it through.
    """

    def __init__(self, sampler: Sampler[int], multiple: int, epoch: Callable[[], int] | None = None):
        self.sampler = sampler
        self.multiple = multiple
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.epoch is not None and hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(self.epoch())
        yield from self.sampler
        yield from [NO_SAMPLE] * (len(self) - _length(self.sampler))

    def __len__(self) -> int:
        return -(-_length(self.sampler) // self.multiple) * self.multiple


def training_sampler(
    sampler: Sampler[int] | None,
    dataset: Any,
    args: Any,
    batch_size: int,
    epoch: Epoch,
    strata: Sequence[Rows] | None = None,
) -> Sampler[int] | None:
    """The training sampler of a run: for one process `sampler` itself, else one order for all, padded at its end.

    One that balances `strata`, if they are given, takes the place of `sampler`.
    """
    if strata is not None:
        sampler = BalancedSampler(strata, args.sampling_seed, epoch)
    if args.world_size == 1 or sampler is None or args.dataloader_drop_last:
        return sampler
    dataset.padded = True
    if isinstance(sampler, RandomSampler):
        # Accelerate would replace it by this one, if it looked inside the padding.
        sampler = SeedableRandomSampler(sampler.data_source, generator=torch.Generator(), data_seed=args.data_seed)
    return PaddedSampler(sampler, batch_size * args.world_size, lambda: epoch.value)


def evaluation_sampler(sampler: Sampler[int] | None, dataset: Any, args: TrainingArguments) -> Sampler[int] | None:
    """The same for an evaluation set, in its own order."""
    if args.world_size == 1 or not isinstance(dataset, IndexedExamples):
        return sampler
    dataset.padded = True
    return PaddedSampler(sampler or SequentialSampler(dataset), args.eval_batch_size * args.world_size)


def ready_loader(loader: DataLoader[Any], args: TrainingArguments, is_training: bool = True) -> DataLoader[Any]:
    """A loader whose examples are prepared and divided, and that draws the seed of its workers from its own generator.

    `dataloader_drop_last` leaves out training images only, since every row of an evaluation counts.

    Persistent workers get one once in a run. Out of the global generator, a resumed run would draw once more, and
    everything after it, such as dropout, would differ.
    """
    _share_by_process(loader)
    if not is_training:
        sampler: Any = loader.batch_sampler
        while (inner := getattr(sampler, "batch_sampler", None)) is not None:
            sampler = inner
        if sampler is not None:
            sampler.drop_last = False
    if isinstance(loader.dataset, IndexedExamples):
        loader.dataset.prepare(args.device)
    getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(args.seed)
    return loader


def _share_by_process(loader: DataLoader[Any]) -> None:
    """Let a loader make, of an iterable dataset, the examples of its own process only.

    Accelerate's wrapper would make those of all processes, to keep its own, and count some rows twice.
    """
    examples = examples_of(loader)
    if isinstance(examples, IterableExamples):
        wrapper = loader.dataset
        examples.share = Share(loader.batch_size or 1)
        if isinstance(wrapper, IterableDatasetShard):
            examples.share = replace(examples.share, rank=wrapper.process_index, world_size=wrapper.num_processes)
            wrapper.num_processes, wrapper.process_index = 1, 0


def examples_of(loader: Any) -> Any:
    """The examples of a loader, without Accelerate's wrapper."""
    examples = getattr(loader, "dataset", None)
    return examples.dataset if isinstance(examples, IterableDatasetShard) else examples


def training_stream(loader: Any) -> IterableExamples | None:
    """The examples of a loader, if they are those of an iterable training set."""
    examples = examples_of(loader)
    return examples if isinstance(examples, IterableExamples) and examples.shuffle is not None else None


def _length(sampler: Any) -> int:
    assert isinstance(sampler, Sized)
    return len(sampler)
