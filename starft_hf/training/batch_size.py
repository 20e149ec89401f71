"""The size of a batch, which is what the rows of a contrastive loss are compared in."""

from starft_hf.training.candidates import Candidates


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
