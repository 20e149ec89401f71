"""What may be wrong with a training batch: parts that are missing, and images of one class only."""

from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from starft_hf.data.examples import Examples
from starft_hf.data.retrieval import CAPTION_COLUMN
from starft_hf.data.source import column_names, is_iterable
from starft_hf.hub.record import MULTI_LABEL
from starft_hf.utils.collectives import gather_values


logger = logging.get_logger(__name__)

# Looking at a batch waits for the device.
_CHECKED = 32


def check_examples(examples: Any) -> None:
    """Raise ValueError unless these are the training examples that a run has checked and cached."""
    if examples is None:
        raise ValueError("there is nothing to train on; pass train_dataset")
    if not isinstance(examples, Examples):
        raise ValueError("train_dataset was replaced, past all checks and caches; make a new StarFTTrainer with it")


def check_to_predict(dataset: Any, args: Any) -> None:
    """Raise ValueError if a dataset to predict has neither labels nor captions, where its columns are known."""
    if isinstance(dataset, Examples) or (names := column_names(dataset)) is None:
        return
    if {args.label_column, args.caption_column or CAPTION_COLUMN}.isdisjoint(names):
        raise ValueError(
            f"the dataset to predict has no column {args.label_column!r}, and predict() measures as well; to "
            "classify images without labels, save the model, and use load(folder)(images) or starft predict"
        )


def check_collator(own: Any) -> None:
    """Raise ValueError for a collator of transformers, none of which makes batches of images with their captions."""
    kind = own if isinstance(own, FunctionType | type) else type(own)
    if kind.__module__.startswith("transformers.data."):
        raise ValueError(
            f"data_collator is {kind.__name__} of transformers, which cannot collate these examples; leave it out, or "
            "pass a function that calls starft_hf.data.collator.StarFTCollator and adds to what it returns"
        )


def check_keys(batch: Mapping[str, Any], run: Any) -> None:
    """Check that a batch of a user's own data collator has what the steps of a run need.

    Args:
        batch: what the collator returned.
        run: the `RunSetup`.

    Raises:
        ValueError: naming the first key that is missing.
    """
    base_loss, regularizer, candidates = run.args.base_loss, run.plan.regularizer, run.candidates
    in_step = candidates.drawn_per_batch or base_loss == MULTI_LABEL
    by_class = regularizer is not None and (regularizer.needs_labels or regularizer.captions_as_labels)
    by_class = by_class and run.plan.class_names is not None
    needed = {
        "pixel_values": True,
        "captions" if in_step else "caption_rows": base_loss == "contrastive",
        "labels": base_loss == "cross_entropy" or by_class,
        "targets": base_loss == MULTI_LABEL,
        "spurious_captions" if in_step else "spurious_rows": candidates.drawn_per_example,
        "spurious_ids": candidates.drawn_per_example and getattr(run.reference, "texts", None) is not None,
        "sample_index": run.sample_weights is not None or getattr(run.reference, "images", None) is not None,
    }
    # Texts that the collator has encoded, against its instructions, get an error of their own.
    encoded = {"captions": "caption_rows", "spurious_captions": "spurious_rows"}
    missing = [key for key, needs in needed.items() if needs and key not in batch and encoded.get(key) not in batch]
    if missing:
        raise ValueError(
            f"the batch of the data_collator has no {missing[0]!r}, which this run needs; call "
            "starft_hf.data.collator.StarFTCollator, which collates where none is given, and add to what it returns "
            "or replace parts of it"
        )


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
