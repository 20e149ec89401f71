"""What a run trains: in which dtype and mode, and whether the model and the optimizer agree on it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.utils import logging

from starft_hf.models.adapters import base_model_of, is_adapted
from starft_hf.models.families import LOGIT_PARAMETERS
from starft_hf.models.heads import HEAD_NAME
from starft_hf.models.modes import disable_dropout, has_dropout
from starft_hf.models.towers import allow_checkpointing


logger = logging.get_logger(__name__)


def in_float32(model: nn.Module) -> nn.Module:
    """`model`, with the weights it trains in float32 or wider, changed in place.

    Updates of fine-tuning are smaller than what half precision resolves, so most would be rounded away. Under an
    adapter the base weights, which do not move, keep their dtype. `bf16=True` computes in half precision all the same.

    Raises:
        ValueError: if an adapter trains whole modules of a half-precision base, which get inputs of its dtype.
    """
    narrow = {str(value.dtype) for value in model.parameters() if value.requires_grad and _is_narrow(value)}
    if not narrow or getattr(model, "quantization_method", None) is not None:
        return model
    if is_adapted(model):
        if any(".modules_to_save." in name for name, _ in model.named_parameters()):
            raise ValueError(
                f"modules_to_save would train modules of a model in {narrow.pop()}, in which most updates would be "
                "rounded away; load the model with dtype=torch.float32, or leave modules_to_save out"
            )
        for value in model.parameters():
            if value.requires_grad and _is_narrow(value):
                value.data = value.data.float()
    else:
        model.float()
    logger.warning(
        "The weights to train are %s, in which most updates would be rounded away; they were converted to float32. "
        "For speed, set bf16=True, which computes in half precision and keeps the weights in float32.",
        " and ".join(sorted(narrow)),
    )
    return model


def ready_modules(model: nn.Module, args: Any, *, compares: bool) -> None:
    """Let the modules of a model compute as the settings say: with dropout or without, and with checkpointing.

    Args:
        model: the model to train.
        args: the settings.
        compares: whether a regularizer compares its embeddings with those of the reference.
    """
    if args.gradient_checkpointing:
        allow_checkpointing(model)
    name = type(base_model_of(model)).__name__
    if args.disable_dropout:
        if disable_dropout(model):
            logger.warning_once(
                "The dropout of the %s is switched off, since the reference has none. disable_dropout=False keeps it.",
                name,
            )
    elif not has_dropout(model):
        logger.warning_once("disable_dropout=False has no effect: the %s has no dropout.", name)
    elif compares:
        logger.warning_once(
            "With disable_dropout=False the %s drops at random while training, and the reference does not: the "
            "regularizer is not 0 at the start, when the weights are equal, and its weight applies to that as well.",
            name,
        )


@contextmanager
def keeping_frozen(model: nn.Module) -> Iterator[None]:
    """Within, weights are loaded; what was frozen stays so, though PEFT lets all of an adapter it loads be trained."""
    before = {name: value.requires_grad for name, value in model.named_parameters()}
    yield
    for name, value in model.named_parameters():
        value.requires_grad_(before.get(name, value.requires_grad))


def check_trained(model: nn.Module, head: nn.Module | None, optimizer: Any = None, scheduler: Any = None) -> None:
    """Check, before the first step, that what requires gradients is what the run is about and what is optimized.

    Args:
        model: the model to train, with its adapter and its head, if any.
        head: the head of a cross-entropy run.
        optimizer: as the user passed it, or None.
        scheduler: as the user passed it, or None.

    Raises:
        ValueError: if nothing but the temperature would be trained, base weights under an adapter would be, or the
            optimizer or scheduler belongs to other parameters.
    """
    check_trained_adapter(model)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if all(name.rpartition(".")[-1] in LOGIT_PARAMETERS for name in trained):
        frozen = sum(1 for _ in model.parameters()) - len(trained)
        raise ValueError(
            f"{frozen} parameters of the {type(model).__name__} have requires_grad=False, so "
            f"{'only the temperature' if trained else 'nothing'} would be trained; call model.requires_grad_(True), "
            "or pass peft_config to train an adapter"
        )
    if optimizer is not None:
        _check_optimizer(trained, head, optimizer)
    if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "the scheduler of `optimizers` belongs to another optimizer, so the learning rate of this run would not "
            "follow it; pass both, (optimizer, scheduler), or set lr_scheduler_type"
        )


def check_trained_adapter(model: Any) -> None:
    """Raise ValueError if `model` has an adapter that is frozen, or trains base weights beside it."""
    if not is_adapted(model):
        return
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    prefixes = (model.base_model.prefix, ".modules_to_save.", ".token_adapter.")
    of_adapter = {name for name in trained if any(prefix in name for prefix in prefixes)}
    if not of_adapter:
        raise ValueError(
            "the adapter of the PeftModel is frozen, as PEFT loads it for inference, so nothing would be trained; "
            "load it with PeftModel.from_pretrained(model, adapter, is_trainable=True)"
        )
    rest = [name for name in trained if name not in of_adapter and not _is_beside_towers(name)]
    if rest:
        raise ValueError(
            f"{len(rest)} base weights under the adapter have requires_grad=True, such as {rest[0]!r}: they would "
            "change the reference, which is the model without its adapter, and would not be saved with the adapter. "
            "Set requires_grad=False on them, or name their modules in modules_to_save"
        )


def _check_optimizer(trained: Mapping[str, Tensor], head: nn.Module | None, optimizer: Any) -> None:
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    missing = [name for name, value in trained.items() if id(value) not in held]
    if not missing:
        return
    added = "the head of base_loss='cross_entropy'" if head is not None else "an adapter"
    raise ValueError(
        f"the optimizer of `optimizers` lacks {len(missing)} of the {len(trained)} parameters that require gradients, "
        f"such as {missing[0]!r}: they would not be trained. If it was made before the trainer added {added}, pass "
        "optimizer_cls_and_kwargs=(torch.optim.AdamW, {'lr': ...}) instead; if they are meant to stay, set "
        "requires_grad=False on them"
    )


@contextmanager
def evaluation_precision(args: TrainingArguments, model: nn.Module) -> Iterator[None]:
    """Evaluate in half precision by autocast where `bf16_full_eval` or `fp16_full_eval` is set.

    `Trainer` would cast the model itself, and everything after would be trained in half precision.
    """
    asked = args.fp16_full_eval, args.bf16_full_eval
    if not any(asked):
        yield
        return
    args.fp16_full_eval = args.bf16_full_eval = False
    try:
        # Trainer leaves this to its cast.
        if next(model.parameters()).device.type != args.device.type:
            model.to(args.device)
        with torch.autocast(args.device.type, dtype=torch.float16 if asked[0] else torch.bfloat16):
            yield
    finally:
        args.fp16_full_eval, args.bf16_full_eval = asked


def _is_narrow(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize < torch.float32.itemsize


def _is_beside_towers(name: str) -> bool:
    return name.rpartition(".")[-1] in LOGIT_PARAMETERS or f".{HEAD_NAME}." in f".{name}"
