"""What a run does about batch norm, checked once the model is loaded."""

from torch import nn
from transformers.utils import logging

from starft_hf.data.decoding import RAISE, SKIP
from starft_hf.models.adapters import base_model_of
from starft_hf.models.modes import has_batch_statistics
from starft_hf.training.configuration import StarFTConfig


logger = logging.get_logger(__name__)


def check_batch_norm(args: StarFTConfig, model: nn.Module, *, compares: bool) -> None:
    """Check that the settings fit the batch norm of a model, and warn of what it does to the run.

    Args:
        args: the settings.
        model: the model to train.
        compares: whether a regularizer compares its embeddings with those of the reference.

    Raises:
        ValueError: if the rows of a batch influence each other, and a setting takes them apart.
    """
    name = type(base_model_of(model)).__name__
    if not has_batch_statistics(model):
        if not args.freeze_batch_norm:
            logger.warning_once("freeze_batch_norm=False has no effect: the %s has no batch norm.", name)
        return
    if not has_batch_statistics(model, frozen=args.freeze_batch_norm):
        logger.warning_once(
            "The batch norm of the %s uses its running statistics while training, as in the reference, and keeps them "
            "as they are. freeze_batch_norm=False normalizes by the statistics of the batch.",
            name,
        )
        return
    repair = "" if args.freeze_batch_norm else "leave freeze_batch_norm at True, or "
    if args.on_bad_image == SKIP:
        raise ValueError(
            f"on_bad_image={SKIP!r} leaves an empty row in the batch, and this {name} normalizes by the statistics of "
            f"a batch, which that would change; {repair}use on_bad_image={RAISE!r} and remove bad images"
        )
    if args.mini_batch_size is not None:
        raise ValueError(
            f"mini_batch_size={args.mini_batch_size} would change what this {name} computes: it normalizes by the "
            f"statistics of a batch, which a part of the batch does not have; {repair}leave mini_batch_size at None"
        )
    if args.freeze_batch_norm:
        logger.warning_once(
            "The %s has batch norm without running statistics (track_running_stats=False), which cannot be frozen: "
            "the embeddings of an image depend on the others in its batch, in evaluations and in the reference too.",
            name,
        )
    elif compares:
        logger.warning_once(
            "With freeze_batch_norm=False the %s normalizes by the statistics of a batch while training, and the "
            "reference by its running statistics: the regularizer is not 0 at the start, when the weights are equal. "
            "On several devices, each normalizes by its own part of the batch.",
            name,
        )
