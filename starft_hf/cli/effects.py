"""Settings of commands that train which were passed and have no effect together with the others."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from starft_hf.cli.command import warn


# Of the inherited settings, those that the cache of the reference depends on.
_OF_THE_CACHE = (
    *("seed", "num_train_epochs", "max_steps", "gradient_accumulation_steps"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_num_workers", "use_cpu"),
    *("disable_tqdm", "log_level"),
)


def warn_of_no_effect(options: argparse.Namespace, runs: Iterable[Any], also: Iterable[str] = ()) -> None:
    """Warn of flags without effect: those that none of the `runs` of a command uses, and those in `also`."""
    runs = list(runs)
    idle = {name for name in also if name in options.passed}
    reasons = _unused_by_all(options, runs)
    if idle:
        passed = ", ".join(options.passed[name] for name in sorted(idle))
        warn(options, f"no effect in `starft {options.command_line[0]}`: {passed}")
    for name, why in reasons.items() if runs else ():
        if name in options.passed and name not in idle:
            warn(options, f"{options.passed[name]} has no effect {why}")


def _unused_by_all(options: argparse.Namespace, runs: Iterable[Any]) -> dict[str, str]:
    """What no run uses, by name, with the reason in one of them."""
    from starft_hf.training.unused_settings import unused_names

    found = [unused_names(args, options.spuriosity) for args in runs]
    return {name: why for name, why in found[0].items() if all(name in unused for unused in found)} if found else {}


def no_effect_on_the_cache() -> list[str]:
    """The arguments of `train` that do not change what is cached of the reference."""
    from transformers import TrainingArguments

    inherited = [part.name for part in fields(TrainingArguments) if part.name not in _OF_THE_CACHE]
    evaluation = ("eval_split", "eval_dataset", "group_column", "eval_templates", "card_template")
    training = ("reg_weight", "reg_schedule", "decay_all_parameters", "warmup_from_zero", "base_loss")
    return [*inherited, *evaluation, *training, "disable_dropout", "freeze_batch_norm", "ignore_mismatched_settings"]


def no_effect_on_a_comparison() -> list[str]:
    """The settings that `compare` chooses itself, or that are about what it does not do: saving and publishing."""
    from transformers import TrainingArguments

    prefixes = ("save_", "hub_", "push_to_hub", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start")
    inherited = [part.name for part in fields(TrainingArguments)]
    best = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
    resuming = ("resume_from_checkpoint", "restore_callback_states_from_checkpoint", "ignore_mismatched_settings")
    # The seeds are those of --seeds, and the regularizer is that of the method.
    chosen = ("seed", "regularizer", "card_template")
    return [*(name for name in inherited if name.startswith(prefixes)), *best, *resuming, *chosen]
