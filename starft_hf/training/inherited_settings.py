"""What StarFT makes of the settings that it inherits from `TrainingArguments`.

`Trainer` honors most of them. Here are those that a run of StarFT cannot honor: some are refused, because the run
would not be what was asked for, and the others have nothing to act on, which is logged.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainingArguments


# By name: whether a value is refused, and why, with what to use instead.
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "deepspeed": (bool, "StarFT was never run with DeepSpeed; use fsdp, or plain data parallelism"),
    "use_liger_kernel": (bool, "Liger has no kernels for dual encoders; leave it at False"),
    "neftune_noise_alpha": (
        lambda value: value is not None,
        "dual encoders of transformers have no single input embedding to add noise to; leave it at None",
    ),
    "include_for_metrics": (
        bool,
        "evaluation computes no loss, and its batches hold no texts; compute_metrics gets logits and labels",
    ),
    "train_sampling_strategy": (
        lambda value: str(getattr(value, "value", value)) not in ("random", "sequential"),
        "images have no lengths to group by; use 'random' or 'sequential'",
    ),
    "learning_rate": (lambda value: not 0 <= value < math.inf, "it must be a finite number that is not negative"),
    "weight_decay": (lambda value: not 0 <= value < math.inf, "it must be a finite number that is not negative"),
    "max_grad_norm": (
        lambda value: not 0 <= value < math.inf,
        "it must be a finite number that is not negative; 0 does not clip",
    ),
    "adam_beta1": (lambda value: not 0 <= value < 1, "it must be in [0, 1)"),
    "adam_beta2": (lambda value: not 0 <= value < 1, "it must be in [0, 1)"),
    "adam_epsilon": (lambda value: not 0 <= value < math.inf, "it must be a finite number that is not negative"),
    "label_smoothing_factor": (lambda value: not 0 <= value < 1, "it must be in [0, 1)"),
}

# By name: what a value has no effect on. Only values that differ from the default are warned of.
_NO_EFFECT = {
    "average_tokens_across_devices": "losses are means over images, not tokens",
    "do_predict": "call predict()",
    "do_train": "call train()",
    "label_names": "label_column chooses the labels",
    "length_column_name": "images have no lengths to group by",
    "liger_kernel_config": "Liger has no kernels for dual encoders",
    "logging_nan_inf_filter": "NaN and infinity in the loss end the run",
    "prediction_loss_only": "evaluation computes no loss, and keeps logits only for compute_metrics and predict()",
    "use_cache": "dual encoders generate no text, so there is nothing to cache",
}

# How the names of optimizers begin, settings, and whether only these optimizers use them, or all but these.
_OPTIMIZERS = (
    (("galore", "apollo"), ("optim_target_modules",), True),
    (("sgd", "adagrad", "adafactor", "rmsprop"), ("adam_beta1", "adam_beta2", "adam_epsilon"), False),
)

# What would change which images are in a batch, behind the back of the settings that are recorded.
_ACCELERATOR = {
    "dispatch_batches": (True, "would cut the texts of a batch to the number of its images"),
    "split_batches": (True, "would divide a batch among the processes; set per_device_train_batch_size instead"),
    "use_seedable_sampler": (False, "would let the order of the images depend on more than the seed"),
}
_PARALLEL = ("tp_size", "cp_size", "sp_size")


def check_inherited_settings(args: TrainingArguments) -> None:
    """Raise ValueError, with what to use instead, if an inherited setting has a value that StarFT cannot honor."""
    for name, (is_refused, why) in _REFUSED.items():
        if is_refused(value := getattr(args, name, None)):
            raise ValueError(f"{name} is {getattr(value, 'value', value)!r}: {why}")
    for name, (refused, why) in _ACCELERATOR.items():
        if getattr(args.accelerator_config, name, None) is refused:
            raise ValueError(f"accelerator_config has {name}={refused}, which {why}; leave it unset")
    if args.max_steps <= 0 and not 0 < args.num_train_epochs < math.inf:
        raise ValueError(
            f"num_train_epochs is {args.num_train_epochs} and max_steps is {args.max_steps}, so nothing would be "
            "trained; one of them must be positive"
        )
    sizes = {name: getattr(args.parallelism_config, name, None) or 1 for name in _PARALLEL}
    if any(size > 1 for size in sizes.values()):
        given = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        raise ValueError(
            f"parallelism_config has {given}, which divides the rows or the width of a batch among processes; StarFT "
            "supports data parallelism, sharded (fsdp) or not"
        )
    if args.label_smoothing_factor and getattr(args, "base_loss", None) == "contrastive":
        raise ValueError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, and base_loss='contrastive' has no labels to "
            "smooth; set it to 0, or use base_loss='cross_entropy'"
        )


def defaults_of(args: TrainingArguments) -> dict[str, Any]:
    """The defaults of the settings, by name."""
    missing = dataclasses.MISSING
    parts = [part for part in dataclasses.fields(args) if part.init]
    return {part.name: part.default if part.default_factory is missing else part.default_factory() for part in parts}


def settings_without_effect(args: TrainingArguments) -> Iterator[str]:
    """The inherited settings that were set and have no effect, as sentences."""
    defaults = defaults_of(args)
    for name, why in _NO_EFFECT.items():
        if name in defaults and getattr(args, name) != defaults[name]:
            yield f"{name}={getattr(args, name)!r} has no effect: {why}."
    optimizer = str(getattr(args.optim, "value", args.optim))
    for kinds, names, are_used in _OPTIMIZERS:
        for name in names if optimizer.startswith(kinds) is not are_used else ():
            if getattr(args, name) != defaults[name]:
                yield f"{name}={getattr(args, name)!r} has no effect with optim={optimizer!r}."
    if args.do_eval and args.eval_strategy == "no":
        yield "do_eval=True has no effect: call evaluate(), or set eval_strategy to evaluate while training."
    if args.learning_rate == 0:
        yield "learning_rate is 0, so the weights stay as they are."
