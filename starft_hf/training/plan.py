"""What is known of a run before anything is loaded, and every check that needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import Trainer
from transformers.utils import logging

from starft_hf.data.class_mapping import check_mapped_sets
from starft_hf.data.columns import ImageColumns, check_captions, check_labels, resolve_columns
from starft_hf.data.groups import GroupFunction
from starft_hf.data.image_cache import check_cacheable_sets
from starft_hf.data.images import ImageTransform
from starft_hf.data.retrieval import CLASSIFICATION
from starft_hf.data.source import column_names, is_iterable
from starft_hf.data.strata import Rows
from starft_hf.data.streams import warn_of_shards
from starft_hf.evaluation.retention import named_retention_sets
from starft_hf.hub.record import MULTI_LABEL
from starft_hf.models.adapters import check_preset, is_adapted
from starft_hf.objectives.regularizers import AUTO_REGULARIZER as AUTO
from starft_hf.objectives.regularizers import NO_REGULARIZER, Regularizer, get_regularizer
from starft_hf.reference import CachePlan, ReferenceSettings, plan_cache
from starft_hf.spuriosity.auto import Spuriosity, check_auto, given_pool
from starft_hf.spuriosity.pool import CLASS_FIELD, SpuriosityPool
from starft_hf.training.batch_norm import check_batch_norm
from starft_hf.training.batch_size import check_size, optimizer_steps
from starft_hf.training.candidates import Candidates, strategy_of
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.evaluation_tasks import SINGLE, check_best_metric, evaluation_tasks, warn_of_unused
from starft_hf.training.inherited_settings import adopt_launched_settings
from starft_hf.training.learning_rate import warn_of_warmup
from starft_hf.training.logit_scale import check_limit
from starft_hf.training.multi_label import check_inputs
from starft_hf.training.parameter_groups import check_groups
from starft_hf.training.passed_optimizers import passed_optimizers
from starft_hf.training.plain_captions import plain_share
from starft_hf.training.saving import check_output_dir
from starft_hf.training.setting_checks import check_schedule
from starft_hf.training.trackers import check_trackers
from starft_hf.training.trained_weights import check_trained_adapter
from starft_hf.training.training_rows import balanced_strata, training_subset
from starft_hf.training.unused_settings import settings_without_effect, unused_settings
from starft_hf.utils.files import local_or_hub
from starft_hf.utils.names import readable, unknown_name


logger = logging.get_logger(__name__)

NO_SEARCH = (
    "StarFTTrainer does not support hyperparameter_search: the model it is given is the frozen reference as well, so "
    "every trial needs a new StarFTTrainer. Make one per setting in a loop, or use starft_hf.compare"
)


@dataclass(frozen=True)
class RunInputs:
    """What a run is given. The attributes are the arguments of `StarFTTrainer`, which explains them.

    `trainer_arguments` are those that `Trainer` gets unchanged; they are only checked.
    """

    model: str | PathLike[str] | nn.Module
    args: StarFTConfig
    train_dataset: Any = None
    eval_dataset: Any = None
    processing_class: Any = None
    spuriosity: Spuriosity = "background"
    reference_model: str | PathLike[str] | nn.Module | None = None
    peft_config: PeftConfig | str | None = None
    image_transform: ImageTransform | None = None
    group_function: GroupFunction | None = None
    zero_shot_probe: Any = None
    class_mapping: Any = None
    trainer_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunPlan:
    """What is known of a run before anything is loaded.

    Attributes:
        regularizer: the regularizer, or None.
        strategy: what it compares images with.
        pool: the spurious templates as given, or None where none are needed.
        retention_sets: datasets that are classified zero-shot before and after training, by name.
        columns: of the training set, or None without one.
        train_dataset: what is trained on of the training set.
        strata: the rows of its classes or groups, if `train_sampling_strategy` balances them.
        drawn_from: how many rows the training set has, if not all of them are trained on.
        cache: what to cache of the reference; None without a regularizer or a training set.
        plain_share: which share of the spurious captions are plain ones.
        passed: the optimizer and the scheduler that the trainer was passed, as a resumed run must have them.
    """

    regularizer: Regularizer | None
    strategy: type[Candidates]
    pool: SpuriosityPool | None
    retention_sets: Mapping[str, Any]
    columns: ImageColumns | None = None
    train_dataset: Any = None
    strata: Sequence[Rows] | None = None
    drawn_from: int | None = None
    cache: CachePlan | None = None
    plain_share: float = 0.0
    passed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes of the training set, or None without labels or training set."""
        return None if self.columns is None else self.columns.class_names

    def choice_in_words(self, args: StarFTConfig, weight: float) -> str | None:
        """What "auto" stands for in this run, as a sentence; None where no setting is that."""
        if self.regularizer is None or self.columns is None or AUTO not in (args.regularizer, args.reg_weight):
            return None
        data = f"With {len(self.class_names)} classes" if self.class_names else "Without classes"
        plain = f", and {self.plain_share:.0%} of the spurious captions are plain ones" if self.plain_share else ""
        return f"{data}, the regularizer is {self.regularizer.name!r} at a weight of {weight:g}{plain}."

    @classmethod
    def check(cls, given: RunInputs) -> "RunPlan":
        """Check what a run is given.

        Raises:
            ValueError: naming what does not fit, and what to change.
        """
        args, dataset = given.args, given.train_dataset
        _check_arguments(given)
        _check_sources(given)
        check_mapped_sets(given.class_mapping, given.eval_dataset)
        tasks = evaluation_tasks(args, given.eval_dataset, given.class_mapping)
        check_best_metric(args, tasks, given.trainer_arguments.get("compute_metrics") is not None)
        warn_of_unused(args, tasks)
        if args.image_cache is not None:
            sets = {"eval_dataset": given.eval_dataset, "zero_shot_probe": given.zero_shot_probe}
            check_cacheable_sets(train_dataset=dataset, **sets)
        several = args.base_loss == MULTI_LABEL
        regularizer = get_regularizer(args.regularizer, several=several)
        check_inputs(given, regularizer)
        strategy = strategy_of(regularizer)
        needs_pool = args.reweight != "none" or strategy.needs_embeddings
        unused = unused_settings(args, given.spuriosity, given.image_transform)
        for sentence in [*settings_without_effect(args), *unused]:
            # Once, since a comparison makes many runs with the same settings.
            logger.warning_once(sentence)
        pool = given_pool(given.spuriosity, args.discovery_pool) if needs_pool else None
        retention_sets = named_retention_sets(given.zero_shot_probe, args.column_settings())
        if dataset is None:
            return cls(regularizer, strategy, pool, retention_sets)

        _check_group_column(given, tasks)
        columns = resolve_columns(dataset, args.column_settings(given.group_function), what="train_dataset")
        if columns.class_names is not None:
            # What "auto" stands for compares images with the same captions for any number of classes.
            regularizer = get_regularizer(args.regularizer, len(columns.class_names), several=several)
        if pool is not None:
            check_auto(given.spuriosity, columns)
        _check_labels_exist(args, regularizer, columns.class_names, streamed=is_iterable(dataset))
        if pool is not None:
            pool = _checked_pool(pool, columns.class_names)
        if regularizer is not None:
            _check_candidates(args, regularizer, pool, columns.class_names)
        check_schedule(args, regularizer, streamed=is_iterable(dataset))
        check_labels(dataset, columns, what="train_dataset", several=True)
        check_captions(dataset, columns, what="train_dataset")
        dataset = training_subset(args, dataset, columns)
        drawn_from = None if dataset is given.train_dataset else len(given.train_dataset)
        given = replace(given, train_dataset=dataset)
        strata = balanced_strata(args, dataset, columns)
        check_size(args, dataset, strategy)
        if (steps := optimizer_steps(args, dataset)) is not None:
            warn_of_warmup(args, steps)
        warn_of_shards(dataset, args.dataloader_num_workers)
        check_output_dir(args, given.model, given.peft_config)
        named = len(columns.class_names) if columns.class_names is not None and columns.caption is None else None
        share, passed = plain_share(args, regularizer, named), passed_optimizers(given.trainer_arguments)
        rows = (columns, dataset, strata, drawn_from, _plan_cache(given, regularizer, columns))
        return cls(regularizer, strategy, pool, retention_sets, *rows, share, passed)

    def check_model(self, args: StarFTConfig, model: nn.Module) -> None:
        """Check that the settings fit the model, once it is loaded.

        Raises:
            ValueError: naming what does not fit and what to change.
        """
        # Before the reference switches the adapter off and on, which would make PEFT train it.
        check_trained_adapter(model)
        self.check_adapter(args, is_adapted(model))
        compares = self.regularizer is not None and strategy_of(self.regularizer).needs_embeddings
        check_batch_norm(args, model, compares=compares)
        if self.passed.get("the optimizer that was passed") is None and self.train_dataset is not None:
            # It raises an ImportError for an optimizer whose package is not installed.
            Trainer.get_optimizer_cls_and_kwargs(args, model)
        check_limit(model, args.max_logit_scale)

    def check_adapter(self, args: StarFTConfig, adapted: bool) -> None:
        """Check that the settings fit a model that is `adapted`, which may be known before it is loaded.

        Raises:
            ValueError: naming what does not fit and what to change.
        """
        if adapted and self.regularizer is not None and self.regularizer.needs_weights:
            raise ValueError(
                f"regularizer={self.regularizer.name!r} compares the weights with those they started from, and with "
                "an adapter these do not change; choose another regularizer, or use weight_decay on the adapter"
            )
        if adapted and args.reference_dtype is not None:
            raise ValueError(
                f"reference_dtype={args.reference_dtype!r} needs a second copy of the weights, but with an adapter "
                "the reference is the model itself with the adapter switched off; leave reference_dtype at None"
            )


def reference_settings(args: StarFTConfig) -> ReferenceSettings:
    """How the frozen reference computes, and what it caches."""
    return ReferenceSettings(
        cache=args.reference_cache,
        cache_dir=args.reference_cache_dir,
        cache_dtype=args.reference_cache_dtype,
        text_cache_gib=args.reference_text_cache_gib,
        dtype=args.reference_dtype,
        mini_batch_size=args.mini_batch_size,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        progress=not args.disable_tqdm,
    )


def _plan_cache(given: RunInputs, regularizer: Regularizer | None, columns: ImageColumns) -> CachePlan | None:
    if regularizer is None:
        return None
    args, dataset, strategy = given.args, given.train_dataset, strategy_of(regularizer)
    # Caching one embedding per image costs more than it saves where a run does not use every image.
    at_least_an_epoch = args.num_train_epochs >= 1
    if args.max_steps > 0:
        seen = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
        at_least_an_epoch = not is_iterable(dataset) and seen >= len(dataset)
    return plan_cache(
        reference_settings(args),
        dataset,
        needs_embeddings=strategy.needs_embeddings,
        needs_weights=regularizer.needs_weights,
        finite_captions=columns.label is not None and (columns.caption is None or bool(strategy.needs_class_captions)),
        deterministic_images=args.crop_scale is None and given.image_transform is None,
        at_least_an_epoch=at_least_an_epoch,
    )


def _check_arguments(given: RunInputs) -> None:
    args, passed = given.args, given.trainer_arguments
    if not isinstance(args, StarFTConfig):
        raise ValueError(f"args is a {type(args).__name__}; pass a StarFTConfig, which has the same settings and more")
    if passed.get("model_init") is not None:
        raise ValueError(f"pass the model itself as `model`, and no model_init. {NO_SEARCH}")
    if given.model is None:
        raise ValueError("pass the model itself, or its Hub id or path, as `model`: it is the reference as well")
    if passed.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func would replace StarFT's loss; register a regularizer instead")
    adopt_launched_settings(args)
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16=True needs a GPU: on a CPU everything would be computed in float32; use bf16=True")
    check_groups(args, *passed.get("optimizers", ())[:1])
    if isinstance(given.peft_config, str):
        check_preset(given.peft_config)
    check_trackers(args.report_to)
    if args.n_gpu > 1:
        logger.warning("%d GPUs are visible to one process; only the first is used.", args.n_gpu)
        # DataParallel would compute the losses per GPU, on a part of the batch each.
        args._n_gpu = 1


def _check_sources(given: RunInputs) -> None:
    """Check that what looks like a path exists, and that the reference is used."""
    for name in ("model", "reference_model", "processing_class"):
        source = getattr(given, name)
        if isinstance(source, (str, PathLike)):
            local_or_hub(source, name)
            if name != "processing_class" and Path(source, "adapter_config.json").is_file():
                raise ValueError(
                    f"{str(source)!r} holds an adapter, not a model; merge it (starft merge) and pass the result, or "
                    "pass PeftModel.from_pretrained(base_model, folder, is_trainable=True) to train it further"
                )
    if (
        given.reference_model is not None
        and given.args.regularizer == NO_REGULARIZER
        and given.args.reweight == "none"
    ):
        raise ValueError(
            f"reference_model has no effect with regularizer={NO_REGULARIZER!r}; leave it out, or choose a regularizer"
        )


def _check_group_column(given: RunInputs, tasks: Mapping[str, str]) -> None:
    """Check that the group columns are in a dataset, of which those whose images are classified need them."""
    sets = given.eval_dataset if isinstance(given.eval_dataset, dict) else {SINGLE: given.eval_dataset}
    named = {name: dataset for name, dataset in sets.items() if tasks.get(name) == CLASSIFICATION}
    if tasks and not named:
        return
    wanted = given.args.group_column
    if not wanted:
        return
    for what, dataset in (named or {"train_dataset": given.train_dataset}).items():
        present = column_names(dataset) if not isinstance(dataset, Mapping) else None
        for name in [wanted] if isinstance(wanted, str) else wanted:
            if present is not None and name not in present:
                raise ValueError(
                    f"{what} has no column {name!r}; its columns are {present}. Set group_column to the right one."
                )


def _check_labels_exist(
    config: StarFTConfig, regularizer: Regularizer | None, class_names: Sequence[str] | None, *, streamed: bool
) -> None:
    """Check that there are labels where something needs them."""
    if class_names is None and config.base_loss != "contrastive":
        raise ValueError(
            f"base_loss={config.base_loss!r} needs labels, and the training dataset has none; set label_column, or "
            "use base_loss='contrastive'"
        )
    by_captions = regularizer is not None and regularizer.captions_as_labels
    if class_names is None and regularizer is not None and regularizer.needs_labels and not by_captions:
        raise ValueError(
            f"regularizer={regularizer.name!r} needs labels, and the training dataset has none; set label_column and "
            "class_names, or use regularizer='kl'"
        )
    if config.reweight != "none" and (class_names is None or streamed):
        what = "the training set is an iterable dataset" if streamed else "it has no labels with class names"
        raise ValueError(
            f"reweight={config.reweight!r} gives every training image a weight by its label before the first step, "
            f"but {what}; pass a labelled dataset that can be read in any order, or use reweight='none'"
        )


def _checked_pool(pool: SpuriosityPool, class_names: Sequence[str] | None) -> SpuriosityPool:
    """The templates that rows can fill, once it is checked that every class has one.

    Warns of restrictions to classes that do not exist.
    """
    if class_names is None and pool.needs_class_names:
        filled = [index for index, template in enumerate(pool) if CLASS_FIELD not in template]
        template = next(template for template in pool if CLASS_FIELD in template)
        problem = f"the spuriosity pool holds {template!r}, which needs a class name, and the training dataset has no "
        if not filled:
            raise ValueError(
                f"{problem}labels; use a pool with templates that hold {{}}, such as 'background' or 'objects', or "
                "set label_column"
            )
        logger.warning_once(
            f"{problem}labels; {len(pool) - len(filled)} such templates are excluded, and {len(filled)} are used."
        )
        pool = pool.only(filled)
    pool.check_classes(class_names)
    known = {readable(name) for name in class_names or ()}
    unknown = sorted({name for names in pool.classes or () for name in names or () if name not in known})
    if unknown:
        logger.warning(
            "The spuriosity pool restricts templates to %d classes that the training set does not have: %s",
            len(unknown),
            unknown_name("class", unknown[0], sorted(known)),
        )
    return pool


def _check_candidates(
    config: StarFTConfig, regularizer: Regularizer, pool: SpuriosityPool | None, class_names: Sequence[str] | None
) -> None:
    """Check that there is what the regularizer compares images with, and warn where it is too little."""
    name, strategy = regularizer.name, strategy_of(regularizer)
    if strategy.needs_class_captions and class_names is None:
        raise ValueError(
            f"regularizer={name!r} {strategy.needs_class_captions}, so it needs labels with class names; set "
            "label_column and class_names, or use regularizer='kl', which only needs captions"
        )
    if class_names is not None and len(class_names) < strategy.fewest_classes:
        raise ValueError(
            f"regularizer={name!r} compares classes, and there is only one: {list(class_names)}; use regularizer='kl'"
        )
    if not strategy.draws_templates and pool is not None and pool.weights is not None:
        logger.warning(
            "regularizer=%r compares every image with every template of the pool, so the weights of the templates, "
            "which control how often each is drawn, have no effect.",
            name,
        )
    if class_names is not None and len(class_names) < regularizer.fewest_classes:
        logger.warning(
            "regularizer=%r constrains very little with %d classes, because a row is compared with captions of other "
            "classes only; regularizer='kl' is recommended below %d classes, or 'conditional', which compares the "
            "classes with each other.",
            name,
            len(class_names),
            regularizer.fewest_classes,
        )
