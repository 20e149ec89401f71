"""Settings that were set and that nothing in the run uses, which is logged."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from transformers import TrainingArguments

from starft_hf.objectives.regularizers import NO_REGULARIZER, get_regularizer
from starft_hf.training.candidates import strategy_of
from starft_hf.training.learning_rate import without_warmup


# By name: what a value has no effect on. Only values that differ from the default are warned of.
_NO_EFFECT = {
    "average_tokens_across_devices": "losses are means over images, not tokens",
    "do_predict": "call predict()",
    "do_train": "call train()",
    "label_names": "label_column chooses the labels",
    "length_column_name": "images have no lengths to group by",
    "liger_kernel_config": "Liger has no kernels for dual encoders",
    "logging_nan_inf_filter": "NaN and infinity in the loss end the run",
    "prediction_loss_only": "the loss is counted anyway, and logits are kept only for compute_metrics and predict()",
    "use_cache": "dual encoders generate no text, so there is nothing to cache",
}

# How the names of optimizers begin, settings, and whether only these optimizers use them, or all but these.
_OPTIMIZERS = (
    (("galore", "apollo"), ("optim_target_modules",), True),
    (("sgd", "adagrad", "adafactor", "rmsprop"), ("adam_beta1", "adam_beta2", "adam_epsilon"), False),
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


def unused_names(args: Any, spuriosity: Any, image_transform: Any = None) -> dict[str, str]:
    """The settings, and the argument `spuriosity`, of parts that a run does not have, with the reason as a clause.

    Args:
        args: the settings, a `StarFTConfig`.
        spuriosity: as `StarFTTrainer` gets it.
        image_transform: as well.
    """
    strategy = strategy_of(get_regularizer(args.regularizer))
    regularized, reweighted = args.regularizer != NO_REGULARIZER, args.reweight != "none"
    compares = strategy.needs_embeddings or reweighted
    without = f"with regularizer={args.regularizer!r}"
    reference = ("reference_cache", "reference_cache_dir", "reference_cache_dtype", "reference_dtype", "spuriosity")
    head, scale = args.base_loss == "cross_entropy", "logit_scale" in (args.freeze or ())
    unscaled = "with base_loss='cross_entropy', which has no logit scale" if head else "with freeze=['logit_scale']"
    parts: list[tuple[Any, str, tuple[str, ...]]] = [
        (not head and not scale, unscaled, ("max_logit_scale",)),
        (regularized, without, ("reg_weight", "reg_schedule")),
        (compares, without, reference),
        (strategy.needs_embeddings, without, ("reference_text_cache_gib",)),
        (strategy.bounds_classes, without, ("reg_max_classes",)),
        (strategy.needs_embeddings and strategy.draws_templates, without, ("plain_caption_share",)),
        (reweighted, "with reweight='none'", ("reweight_clip",)),
        (compares and spuriosity == "auto", "without spuriosity='auto'", ("discovery_pool", "discovery_samples")),
        (image_transform is None or args.image_cache, "with an image_transform", ("crop_scale",)),
        (without_warmup(args) is None, without_warmup(args) or "", ("warmup_from_zero",)),
    ]
    return {name: why for is_used, why, names in parts if not is_used for name in names}


def unused_settings(args: Any, spuriosity: Any, image_transform: Any = None) -> Iterator[str]:
    """What was set or passed for a part that this run does not have, as sentences."""
    defaults = defaults_of(args)
    for name, why in unused_names(args, spuriosity, image_transform).items():
        # A folder for a cache is set once for many runs.
        is_set = not isinstance(spuriosity, str) if name == "spuriosity" else getattr(args, name) != defaults[name]
        if is_set and name != "reference_cache_dir":
            shown = name if name == "spuriosity" else f"{name}={getattr(args, name)!r}"
            yield f"{shown} has no effect {why}."


def without_unused(args: Any, spuriosity: Any) -> Any:
    """`args` with the defaults of what has no effect: settings that several runs share are not warned of in each."""
    defaults = defaults_of(args)
    unused = {name: defaults[name] for name in unused_names(args, spuriosity) if name in defaults}
    return dataclasses.replace(args, **unused) if unused else args
