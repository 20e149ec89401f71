"""Checks of a run before anything expensive is done."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from starft_hf.data.columns import ImageColumns, resolve_columns
from starft_hf.data.decoding import RAISE, SKIP
from starft_hf.data.groups import GroupFunction
from starft_hf.data.source import is_stream
from starft_hf.models.adapters import check_preset, is_adapted
from starft_hf.models.encoder import has_batch_statistics
from starft_hf.objectives.regularizers import NO_REGULARIZER, Regularizer
from starft_hf.spuriosity.auto import Spuriosity, check_auto
from starft_hf.spuriosity.pool import CLASS_FIELD, SpuriosityPool
from starft_hf.training.candidates import strategy_of
from starft_hf.training.configuration import StarFTConfig
from starft_hf.utils.files import check_writable
from starft_hf.utils.names import readable, unknown_name


logger = logging.get_logger(__name__)


def check_run(
    config: StarFTConfig,
    regularizer: Regularizer | None,
    pool: SpuriosityPool | None,
    class_names: Sequence[str] | None,
    *,
    streamed: bool,
) -> None:
    """Check that the settings fit each other and the data; warn of what is allowed but unwise.

    Args:
        config: the settings.
        regularizer: the regularizer they name.
        pool: the spuriosity pool, where the regularizer needs one.
        class_names: the classes, or None without labels.
        streamed: whether the training set is an iterable dataset.

    Raises:
        ValueError: naming what does not fit and what to change.
    """
    if class_names is None:
        if config.base_loss == "cross_entropy":
            raise ValueError(
                "base_loss='cross_entropy' needs labels, and the training dataset has none; set label_column, or "
                "use base_loss='contrastive'"
            )
        if regularizer is not None and regularizer.needs_labels:
            raise ValueError(
                f"regularizer={regularizer.name!r} needs labels, and the training dataset has none; set "
                "label_column and class_names, or use regularizer='kl'"
            )
        if pool is not None and pool.needs_class_names:
            template = next(template for template in pool if CLASS_FIELD in template)
            raise ValueError(
                f"the spuriosity pool holds {template!r}, which needs a class name, and the training dataset has no "
                "labels; use a pool whose templates hold {} only"
            )
    if config.reweight != "none" and (class_names is None or streamed):
        what = "the training set is an iterable dataset" if streamed else "it has no labels with class names"
        raise ValueError(
            f"reweight={config.reweight!r} gives every training image a weight by its label before the first step, "
            f"but {what}; pass a labelled dataset that can be read in any order, or use reweight='none'"
        )
    if pool is not None:
        _check_restrictions(pool, class_names)
    if regularizer is not None:
        _check_candidates(config, regularizer, pool, class_names)
    if regularizer is not None and class_names is not None and len(class_names) < regularizer.fewest_classes:
        logger.warning(
            "regularizer=%r constrains very little with %d classes, because a row is compared with captions of other "
            "classes only; regularizer='kl' is recommended below %d classes, or 'conditional', which compares the "
            "classes with each other.",
            regularizer.name,
            len(class_names),
            regularizer.fewest_classes,
        )
    if config.reg_schedule == "epoch_linear":
        if streamed or config.max_steps > 0:
            raise ValueError(
                "reg_schedule='epoch_linear' counts epochs, which an iterable dataset or a run limited by max_steps "
                "does not have; use reg_schedule='linear'"
            )
        if regularizer is not None and config.num_train_epochs <= 1:
            logger.warning(
                "reg_schedule='epoch_linear' is 0 in the last epoch, so this run of one epoch has no regularizer; "
                "use reg_schedule='linear'."
            )
    if regularizer is not None and config.reg_weight == 0:
        logger.warning("reg_weight is 0; regularizer=%r does the same at less cost.", NO_REGULARIZER)


def _check_candidates(
    config: StarFTConfig, regularizer: Regularizer, pool: SpuriosityPool | None, class_names: Sequence[str] | None
) -> None:
    """Check that there is what the regularizer compares images with."""
    strategy = strategy_of(regularizer)
    if strategy.needs_class_captions and (class_names is None or config.caption_column is not None):
        raise ValueError(
            f"regularizer={regularizer.name!r} {strategy.needs_class_captions}, so it needs labels with class names "
            "and captions made of them; set label_column and class_names, and no caption_column"
        )
    if class_names is not None and len(class_names) < strategy.fewest_classes:
        raise ValueError(
            f"regularizer={regularizer.name!r} compares classes, and there is only one: {list(class_names)}; use "
            "regularizer='kl'"
        )
    if not strategy.draws_templates and pool is not None and pool.weights is not None:
        logger.warning(
            "regularizer=%r compares every image with every template of the pool, so the weights of the templates, "
            "which control how often each is drawn, have no effect.",
            regularizer.name,
        )


def _check_restrictions(pool: SpuriosityPool, class_names: Sequence[str] | None) -> None:
    """Check that every class has a template; warn of restrictions to classes that do not exist."""
    pool.check_classes(class_names)
    known = {readable(name) for name in class_names or ()}
    unknown = sorted({name for names in pool.classes or () for name in names or () if name not in known})
    if unknown:
        logger.warning(
            "The spuriosity pool restricts templates to %d classes that the training set does not have: %s",
            len(unknown),
            unknown_name("class", unknown[0], sorted(known)),
        )


def check_model(config: StarFTConfig, regularizer: Regularizer | None, model: nn.Module) -> None:
    """Check that the settings fit the model.

    Raises:
        ValueError: naming what does not fit and what to change.
    """
    if is_adapted(model) and regularizer is not None and regularizer.needs_weights:
        raise ValueError(
            f"regularizer={regularizer.name!r} compares the weights with those they started from, and with an adapter "
            "these do not change; choose another regularizer, or use weight_decay on the adapter"
        )
    if is_adapted(model) and config.reference_dtype is not None:
        raise ValueError(
            f"reference_dtype={config.reference_dtype!r} needs a second copy of the weights, but with an adapter the "
            "reference is the model itself with the adapter switched off; leave reference_dtype at None"
        )
    if config.on_bad_image == SKIP and has_batch_statistics(model):
        raise ValueError(
            f"on_bad_image={SKIP!r} leaves an empty row in the batch, and this {type(model).__name__} normalizes by "
            f"the statistics of a batch, which that would change; use on_bad_image={RAISE!r} and remove bad images"
        )
    if config.mini_batch_size is not None and has_batch_statistics(model):
        raise ValueError(
            f"mini_batch_size={config.mini_batch_size} would change what this {type(model).__name__} computes: it "
            "normalizes by the statistics of a batch, which a part of the batch does not have. Leave it at None."
        )


def check_best_metric(config: StarFTConfig, eval_dataset: Any) -> None:
    """Check that `metric_for_best_model` is a metric of one of several evaluation sets.

    Of a single one it may be any metric of `compute_metrics`.

    Raises:
        ValueError: naming the evaluation sets.
    """
    metric = config.metric_for_best_model
    if metric is None or not isinstance(eval_dataset, dict) or not eval_dataset:
        return
    if not metric.removeprefix("eval_").startswith(tuple(f"{name}_" for name in eval_dataset)):
        names = list(eval_dataset)
        raise ValueError(
            f"metric_for_best_model is {metric!r}, which is not a metric of any of the evaluation sets {names}; name "
            f"one of them, as in 'eval_{names[0]}_worst_group_accuracy'"
        )


def check_training_set(
    dataset: Any,
    config: StarFTConfig,
    regularizer: Regularizer | None,
    pool: SpuriosityPool | None,
    spuriosity: Spuriosity,
    group_function: GroupFunction | None = None,
) -> ImageColumns:
    """The columns of a training set, checked against the settings, the regularizer and the pool.

    Args:
        dataset: the training set.
        config: the settings.
        regularizer: the one they name, or None.
        pool: the spurious templates, or None where they are not needed.
        spuriosity: as it was passed to the trainer.
        group_function: names the group of a row, instead of `config.group_column`.

    Raises:
        ValueError: as `resolve_columns`, `check_auto` and `check_run`.
    """
    columns = resolve_columns(dataset, config.column_settings(group_function), what="train_dataset")
    if pool is not None:
        check_auto(spuriosity, columns)
    check_run(config, regularizer, pool, columns.class_names, streamed=is_stream(dataset))
    return columns


def check_size(config: StarFTConfig, dataset: Any) -> None:
    """Check that a training set fills a batch, where incomplete ones are dropped.

    Raises:
        ValueError: if no batch would be left.
    """
    batch = config.train_batch_size * config.world_size
    if config.dataloader_drop_last and not is_stream(dataset) and len(dataset) < batch:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, fewer than the {batch} of a batch, and dataloader_drop_last=True "
            "drops what does not fill one; set dataloader_drop_last=False or a smaller per_device_train_batch_size"
        )


def check_output_dir(config: StarFTConfig) -> None:
    """Check that checkpoints can be written, where a run writes any.

    Raises:
        PermissionError: if not.
    """
    if config.save_strategy != "no" and config.should_save:
        check_writable(Path(str(config.output_dir)), "output_dir")


def check_arguments(args: Any, model: Any, peft_config: Any, kwargs: Mapping[str, Any]) -> None:
    """Check what `StarFTTrainer` is given, before anything is loaded.

    Raises:
        ValueError: naming what was passed and what to pass instead.
    """
    if not isinstance(args, StarFTConfig):
        raise ValueError(f"args is a {type(args).__name__}; pass a StarFTConfig, which has the same settings and more")
    if model is None or "model_init" in kwargs:
        raise ValueError("pass the model itself, or its Hub id or path, as `model`: it is the reference as well")
    if kwargs.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func would replace StarFT's loss; register a regularizer instead")
    if isinstance(peft_config, str):
        check_preset(peft_config)
    if args.n_gpu > 1:
        logger.warning("%d GPUs are visible to one process; only the first is used.", args.n_gpu)
        # DataParallel would compute the losses per GPU, on a share of the batch each.
        args._n_gpu = 1
