"""Settings of commands that train which were passed and have no effect together with the others."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from starft_hf.cli.command import warn


# Of the inherited settings, those that the cache of the reference depends on.
_OF_THE_CACHE = (
    *("output_dir", "save_strategy", "seed", "num_train_epochs", "max_steps", "gradient_accumulation_steps"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_num_workers", "use_cpu"),
    *("disable_tqdm", "log_level"),
)


def warn_of_no_effect(options: argparse.Namespace, runs: Iterable[Any], also: Iterable[str] = ()) -> None:
    """Warn of what was passed in vain: by the settings of the `runs` of a command, and `also` whatever they are."""
    runs = list(runs)
    idle = {name for name in also if name in options.passed}
    reasons: dict[str, str] = {}
    for names, needs, matters in _CONDITIONS:
        if not any(matters(args, options) for args in runs):
            reasons |= {name: f"without {needs}" for name in names if name in options.passed and name not in idle}
    if idle:
        passed = ", ".join(options.passed[name] for name in sorted(idle))
        warn(options, f"no effect in `starft {options.command_line[0]}`: {passed}")
    for name, why in reasons.items():
        warn(options, f"{options.passed[name]} has no effect {why}")


def no_effect_on_the_cache() -> list[str]:
    """The arguments of `train` that do not change what is cached of the reference."""
    from transformers import TrainingArguments

    inherited = [part.name for part in fields(TrainingArguments) if part.name not in _OF_THE_CACHE]
    evaluation = ("eval_split", "eval_dataset", "group_column", "eval_templates", "card_template")
    training = ("reg_weight", "reg_schedule", "decay_all_parameters", "base_loss", "ignore_mismatched_settings")
    return [*inherited, *evaluation, *training]


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


def _has_regularizer(args: Any, options: Any) -> bool:
    from starft_hf.objectives.regularizers import get_regularizer

    return get_regularizer(args.regularizer) is not None


def _is_reweighted(args: Any, options: Any) -> bool:
    return bool(args.reweight != "none")


def _compares(args: Any, options: Any) -> bool:
    from starft_hf.objectives.regularizers import get_regularizer
    from starft_hf.training.candidates import strategy_of

    return strategy_of(get_regularizer(args.regularizer)).needs_embeddings


def _samples_classes(args: Any, options: Any) -> bool:
    from starft_hf.objectives.regularizers import get_regularizer
    from starft_hf.training.candidates import strategy_of

    return strategy_of(get_regularizer(args.regularizer)).drawn_per_batch


def _any_of(*tests: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda args, options: any(test(args, options) for test in tests)


# The names of settings, what they need, and whether a run has it.
_CONDITIONS: tuple[tuple[tuple[str, ...], str, Callable[[Any, Any], bool]], ...] = (
    (("reg_weight", "reg_schedule"), "a regularizer", _has_regularizer),
    (("spuriosity",), "a regularizer that uses a pool, or --reweight", _any_of(_compares, _is_reweighted)),
    (
        ("reference_cache", "reference_cache_dir", "reference_cache_dtype", "reference_dtype"),
        "a regularizer that compares embeddings, or --reweight attribution",
        _any_of(_compares, _is_reweighted),
    ),
    (("reference_text_cache_gib",), "a regularizer that compares embeddings", _compares),
    (("reg_max_classes",), "--regularizer conditional", _samples_classes),
    (("reweight_clip",), "--reweight attribution", _is_reweighted),
    (("eval_templates",), "--base_loss contrastive", lambda args, options: args.base_loss == "contrastive"),
    (
        ("discovery_pool", "discovery_samples"),
        "--spuriosity auto",
        lambda args, options: options.spuriosity == "auto" and _any_of(_compares, _is_reweighted)(args, options),
    ),
)
