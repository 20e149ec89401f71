"""The size of a batch, which is what the rows of a contrastive loss are compared in, and the number of steps."""

import math
from typing import Any

from transformers.utils import logging

from starft_hf.data.source import is_iterable
from starft_hf.training.candidates import Candidates


logger = logging.get_logger(__name__)


def check_size(args: Any, dataset: Any, strategy: type[Candidates]) -> None:
    """Check that there is something to compare in a batch and, where incomplete ones are dropped, that one is full."""
    batch = args.train_batch_size * args.world_size
    check_batch(batch if is_iterable(dataset) else min(batch, len(dataset)), args.base_loss, strategy)
    compares = args.base_loss == "contrastive" or strategy.drawn_per_example
    if compares and not is_iterable(dataset) and len(dataset) % batch == 1 and not args.dataloader_drop_last:
        logger.warning(
            "The last batch of every epoch has one image, which is compared with nothing, so it trains nothing; set "
            "dataloader_drop_last=True to drop it."
        )
    if args.dataloader_drop_last and not is_iterable(dataset) and len(dataset) < batch:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, fewer than the {batch} of a batch, and dataloader_drop_last=True "
            "drops what does not fill one; set dataloader_drop_last=False or a smaller per_device_train_batch_size"
        )


def optimizer_steps(args: Any, dataset: Any) -> int | None:
    """The optimizer steps of a run, as `Trainer` counts them; None of an iterable dataset without max_steps."""
    if args.max_steps > 0:
        return int(args.max_steps)
    if is_iterable(dataset):
        return None
    batches = len(dataset) / (args.train_batch_size * args.world_size)
    whole = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(args.num_train_epochs * max(1, math.ceil(whole / args.gradient_accumulation_steps)))


def check_batch(rows: int, base_loss: str, strategy: type[Candidates]) -> None:
    """Raise ValueError if a batch of `rows` images, over all processes, has nothing to compare an image with."""
    if rows > 1 or (base_loss != "contrastive" and not strategy.drawn_per_example):
        return
    what = "base_loss='contrastive'" if base_loss == "contrastive" else "the regularizer"
    raise ValueError(
        f"a batch has one image, and {what} compares an image with the captions of the others in its batch, so the "
        "loss would be 0 and nothing would be trained; set a larger per_device_train_batch_size. If that does not fit "
        "into memory, set mini_batch_size=1 as well: losses and gradients stay those of the whole batch"
    )


def check_retry(batch_size: int, previous: int, steps: int) -> None:
    """Raise RuntimeError if `auto_find_batch_size` would start anew on weights that have been trained.

    Args:
        batch_size: images per device, from now on.
        previous: images per device until now.
        steps: optimizer steps that were taken with `previous`.
    """
    if batch_size < previous and steps > 0:
        raise RuntimeError(
            f"a batch of {previous} did not fit into memory after {steps} steps, and auto_find_batch_size cannot "
            "start anew with trained weights; set mini_batch_size, which keeps the batch and its loss as they "
            f"are, or per_device_train_batch_size={batch_size}"
        )
