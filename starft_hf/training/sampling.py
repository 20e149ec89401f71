"""The order of samples in several processes, with the last batch filled up by nothing."""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import Trainer

from starft_hf.data.examples import Epoch, IndexedExamples
from starft_hf.training.configuration import StarFTConfig
from starft_hf.utils.collectives import NO_SAMPLE


class SamplingMixin(Trainer):
    """The part of `StarFTTrainer` that shares samples out among processes."""

    args: StarFTConfig
    epoch: Epoch

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        sampler = super()._get_train_sampler(train_dataset)
        if self.args.world_size == 1 or sampler is None or self.args.dataloader_drop_last:
            return sampler
        dataset.padded = True
        step = self._train_batch_size * self.args.world_size
        return padded_training_sampler(sampler, step, lambda: self.epoch.value, self.args.data_seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        sampler = super()._get_eval_sampler(eval_dataset)
        if self.args.world_size == 1 or not isinstance(eval_dataset, IndexedExamples):
            return sampler
        eval_dataset.padded = True
        return PaddedSampler(
            sampler or SequentialSampler(eval_dataset), self.args.eval_batch_size * self.args.world_size
        )


class PaddedSampler(Sampler[int]):
    """A sampler, followed by as many `NO_SAMPLE` as fill the last batch of all processes.

    Without them, the last batch would be filled up with samples from the beginning, which would count twice.

    Args:
        sampler: what gives the samples.
        multiple: samples per step of all processes.
        epoch: tells the epoch to a sampler that shuffles by it. On resuming within an epoch, Accelerate's wrappers
            do not pass it through.
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


def padded_training_sampler(
    sampler: Sampler[int], multiple: int, epoch: Callable[[], int], seed: int | None
) -> PaddedSampler:
    """The training sampler of several processes, which draw in one order and pad the last step.

    A random sampler is replaced by the one Accelerate would replace it with; it does not look inside the padding.
    """
    if isinstance(sampler, RandomSampler):
        sampler = SeedableRandomSampler(sampler.data_source, generator=torch.Generator(), data_seed=seed)
    return PaddedSampler(sampler, multiple, epoch)


def _length(sampler: Any) -> int:
    assert isinstance(sampler, Sized)
    return len(sampler)
