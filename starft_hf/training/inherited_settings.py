"""What StarFT refuses of the settings that it inherits from `TrainingArguments`, and of those of `accelerate launch`.

`Trainer` honors most of them. Here are the values that are refused, because the run would not be what was asked for.
"""

import math
from collections.abc import Callable
from typing import Any

from accelerate import ParallelismConfig
from accelerate.utils import DynamoBackend, TorchDynamoPlugin, parse_flag_from_env
from transformers import TrainingArguments

from starft_hf.utils.collectives import world_size


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
        "evaluations keep no losses, and their batches hold no texts; compute_metrics gets logits and labels",
    ),
    "train_sampling_strategy": (
        lambda value: value in ("group_by_length", "batch_rebalance"),
        "images have no lengths to group by; use 'random', 'sequential', 'class_balanced' or 'group_balanced'",
    ),
    "learning_rate": (lambda value: not 0 <= value < math.inf, "it must be a finite number that is not negative"),
    "weight_decay": (lambda value: not 0 <= value < math.inf, "it must be a finite number that is not negative"),
    "max_grad_norm": (
        lambda value: value is None or not 0 <= value < math.inf,
        "it must be a finite number that is not negative; 0 does not clip",
    ),
    "adam_beta1": (lambda value: not 0 <= value < 1, "it must be in [0, 1)"),
    "adam_beta2": (lambda value: not 0 <= value < 1, "it must be in [0, 1)"),
    "adam_epsilon": (lambda value: not 0 <= value < math.inf, "it must be a finite number that is not negative"),
    "max_steps": (
        lambda value: value != -1 and value < 1,
        "it must be a positive integer, or -1 for all num_train_epochs epochs",
    ),
    **{
        name: (lambda value: value < 1, "it must be a positive integer")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    },
    "dataloader_num_workers": (lambda value: value < 0, "it must be 0, for none, or a positive integer"),
    "label_smoothing_factor": (lambda value: not 0 <= value < 1, "it must be in [0, 1)"),
}

# What would change which images are in a batch, behind the back of the settings that are recorded.
_ACCELERATOR = {
    "dispatch_batches": (True, "would cut the texts of a batch to the number of its images"),
    "split_batches": (True, "would divide a batch among the processes; set per_device_train_batch_size instead"),
    "use_seedable_sampler": (False, "would let the order of the images depend on more than the seed"),
}
_PARALLEL = ("tp_size", "cp_size", "sp_size")
_ONLY_DATA = "StarFT supports data parallelism, sharded (fsdp) or not"


def check_inherited_settings(args: TrainingArguments) -> None:
    """Raise ValueError, with what to use instead, if an inherited setting has a value that StarFT cannot honor."""
    for name, (is_refused, why) in _REFUSED.items():
        if is_refused(value := getattr(args, name, None)):
            raise ValueError(f"{name} is {getattr(value, 'value', value)!r}: {why}")
    for name, (refused, why) in _ACCELERATOR.items():
        if getattr(args.accelerator_config, name, None) is refused:
            raise ValueError(f"accelerator_config has {name}={refused}, which {why}; leave it unset")
    if args.include_num_input_tokens_seen not in (False, "no"):
        raise ValueError(
            f"include_num_input_tokens_seen={args.include_num_input_tokens_seen!r} would count wrongly: captions "
            "share the computation of their common beginnings, and some are only known in the step; set it to 'no'"
        )
    if args.remove_unused_columns:
        raise ValueError(
            "remove_unused_columns=True would delete the image column before its use; keep it False, and choose "
            "columns by image_column, label_column, caption_column and group_column"
        )
    if args.max_steps <= 0 and not 0 < args.num_train_epochs < math.inf:
        raise ValueError(
            f"num_train_epochs is {args.num_train_epochs} and max_steps is {args.max_steps}, so nothing would be "
            "trained; one of them must be positive"
        )
    _check_parallelism(args.parallelism_config)
    if args.label_smoothing_factor and getattr(args, "base_loss", None) == "contrastive":
        raise ValueError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, and base_loss='contrastive' has no labels to "
            "smooth; set it to 0, or use base_loss='cross_entropy'"
        )


def adopt_launched_settings(args: TrainingArguments) -> None:
    """Take what only the configuration of `accelerate launch` has as settings, so that it is recorded.

    Raises:
        ValueError: for what StarFT was never run with, for a precision that was set too late to have an effect, and
            for several processes that do not know of each other.
    """
    if (processes := world_size()) != args.world_size:
        raise ValueError(
            f"{processes} processes were started, and there is no accelerator for them, so that each would train by "
            "itself on all images; set use_cpu=True"
        )
    for name in ("DeepSpeed", "Megatron-LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name.upper().replace('-', '_')}"):
            raise ValueError(f"Accelerate is configured for {name}, which StarFT was never run with; {_ONLY_DATA}")
    if parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"):
        _check_parallelism(ParallelismConfig())
    _adopt_precision(args)
    launched = TorchDynamoPlugin()
    if launched.backend != DynamoBackend.NO and not args.torch_compile:
        args.torch_compile, args.torch_compile_backend = True, launched.backend.value.lower()
        args.torch_compile_mode = launched.mode


def _check_parallelism(config: ParallelismConfig | None) -> None:
    sizes = {name: getattr(config, name, None) or 1 for name in _PARALLEL}
    if any(size > 1 for size in sizes.values()):
        given = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        raise ValueError(
            f"parallelism_config has {given}, which divides the rows or the width of a batch among processes; "
            f"{_ONLY_DATA}"
        )


def _adopt_precision(args: TrainingArguments) -> None:
    precision, own = args.mixed_precision, "fp16" if args.fp16 else "bf16" if args.bf16 else "no"
    if precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"Accelerate is configured for {precision}, which was never run; use bf16, fp16 or no")
    if own not in ("no", precision):
        raise ValueError(f"args.{own} was set after the settings were made, too late; use StarFTConfig({own}=True)")
    args.bf16, args.fp16 = precision == "bf16", precision == "fp16"
