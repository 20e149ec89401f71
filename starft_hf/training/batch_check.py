"""Batches whose images are all of one class, from which there is little to learn."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from starft_hf.data.source import is_iterable
from starft_hf.utils.collectives import gather_values


logger = logging.get_logger(__name__)

# Looking at a batch waits for the device.
_CHECKED = 32


class OneClassCheck:
    """Warns once if most of the first batches, over all processes, have images of one class only."""

    def __init__(self) -> None:
        self._seen = 0
        self._single = 0
        self._warned = False

    def check(self, batch: Mapping[str, Any], args: TrainingArguments, dataset: Any) -> None:
        """Check a training batch of `dataset`; all processes call this together."""
        if self._warned or self._seen >= _CHECKED or "labels" not in batch:
            return
        labels = gather_values(batch["labels"])
        if "valid" in batch:
            labels = labels[gather_values(batch["valid"])]
        self._seen += 1
        self._single += len(labels) > 1 and len(torch.unique(labels)) == 1
        if 2 * self._single > self._seen:
            self._warned = True
            logger.warning(
                "Of the first %d batches, %d have images of one class only. From these, the contrastive loss learns "
                "nothing and the regularizer 'star' compares nothing. %s",
                self._seen,
                self._single,
                _cause(args, dataset),
            )


def _cause(args: Any, dataset: Any) -> str:
    is_stream = is_iterable(dataset)
    if is_stream and args.train_sampling_strategy != "sequential":
        return (
            f"The iterable dataset has its rows sorted by class, and shuffle_buffer_size={args.shuffle_buffer_size} "
            "does not mix them; set it to more rows than a class has, or shuffle what the dataset is made of."
        )
    if is_stream or args.train_sampling_strategy == "sequential":
        return (
            f"With train_sampling_strategy={args.train_sampling_strategy!r} they follow the order of the dataset, "
            "which is sorted by class; use 'random', or dataset.shuffle(seed=0)."
        )
    return "Almost all images are of one class, or a batch has too few of them; set a larger batch size."
