"""`StarFTTrainer`: wires data, losses, reference and evaluation into the `Trainer` of transformers."""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction
from transformers.utils import logging

from starft_hf.data.captions import CaptionBank
from starft_hf.data.class_mapping import check_mapped_sets
from starft_hf.data.collator import StarFTCollator
from starft_hf.data.columns import check_labels
from starft_hf.data.decoding import SkippedImages
from starft_hf.data.examples import (
    Epoch,
    Examples,
    TrainingExampleMaker,
    as_examples,
    evaluation_sets,
)
from starft_hf.data.groups import GroupFunction
from starft_hf.data.images import ImagePreprocessor, ImageTransform
from starft_hf.data.source import is_stream
from starft_hf.evaluation.loop import ClassifierEvaluation, labels_that_count, training_group_shares
from starft_hf.evaluation.probes import evaluate_probes, named_probes
from starft_hf.evaluation.results import EvaluationResult, Retention
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.models.adapters import base_model_of, is_adapted, save_temperature, with_adapter
from starft_hf.models.encoder import DualEncoder, check_dual_encoder, load_model, load_processor, logit_scale_of
from starft_hf.models.fsdp import prepare_for_sharding, with_scalars
from starft_hf.models.heads import HEAD_NAME, head_from_weights, load_head, save_head, select_classes
from starft_hf.objectives.regularizers import get_regularizer
from starft_hf.objectives.schedules import Progress, reg_weight_at
from starft_hf.reference import Reference, plan_cache
from starft_hf.spuriosity.auto import given_pool, pool_of_run
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.training.alignment import make_alignment
from starft_hf.training.callbacks import BatchPlaceCallback, EpochCallback, RunningLosses
from starft_hf.training.checkpointing.resuming import ResumingMixin
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.nan_check import FinitenessMixin
from starft_hf.training.publishing import PublishingMixin
from starft_hf.training.reweighting import SampleWeights
from starft_hf.training.sampling import SamplingMixin
from starft_hf.training.step import TrainingStep, contrastive_base_loss, cross_entropy_base_loss
from starft_hf.training.validation import (
    check_arguments,
    check_best_metric,
    check_model,
    check_size,
    check_training_set,
)
from starft_hf.utils.collectives import forget_preparation
from starft_hf.utils.files import check_writable


logger = logging.get_logger(__name__)

_KEPT_MISTAKES = 12


class StarFTTrainer(ResumingMixin, FinitenessMixin, SamplingMixin, PublishingMixin, Trainer):
    """Fine-tunes a dual encoder such as CLIP so that it stays robust (arXiv 2505.13232).

    Args:
        model: a Hub id, a path or a loaded dual encoder (CLIP, SigLIP, ...). As given, it is also the reference.
        args: the settings; None takes the defaults.
        train_dataset: a `datasets` Dataset or IterableDataset with an Image and a ClassLabel column, or any torch
            data set whose rows are mappings with these columns.
        eval_dataset: one such data set or a dictionary of several. Each may have its own classes.
        processing_class: the model's processor, or where to load it from; None loads it from where the model is from.
        spuriosity: the pool of spurious templates: a built-in name ("background", "texture", "resolution", "objects",
            "style", "all"), a path, a Hub repository, a list of templates or a `SpuriosityPool`.
        reference_model: another reference than the model as given; a Hub id, a path or a loaded model.
        peft_config: trains an adapter instead of the model: any PEFT configuration that fits, or "lora" (attention of
            both towers), "lora-vision" or "lora-text". A `PeftModel` may be given as `model` as well. The reference is
            then the model with its adapter switched off, without a second copy of the weights.
        image_transform: from a PIL image to a PIL image or a tensor, in place of the random crop of training images.
            What it draws from the global generators is keyed to the sample.
        data_collator: in place of `StarFTCollator`.
        compute_metrics: further metrics, from an `EvalPrediction` with the logits of the whole set. Without it no
            logits are kept.
        callbacks: further callbacks.
        optimizers: optimiser and learning-rate scheduler.
        group_function: names the evaluation group of a row, from its columns other than the image; in place of
            `group_column`.
        class_mapping: for an evaluation set whose labels stand for classes of the training set, as ImageNet-R's and
            ObjectNet's: for every label the indices into `class_names`, of which the best counts; a dictionary by the
            names of the sets where there are several.
        zero_shot_probe: a labelled data set of another task, or a dictionary of several, that is classified zero-shot
            before and after training: what fine-tuning has made the model forget. See `retention`.
        kwargs: the rest of `Trainer`'s arguments.

    Attributes:
        reference: the frozen reference, or None with regularizer="none".
        sample_weights: the weights of the training images, or None with reweight="none".
        class_names: the classes of the training set, or None without labels or training set.
        retention: accuracy on the probes before and after training, by their names.
        evaluation_results: what the latest evaluations found, by the name of the data set ("eval" for a single one).
        skipped_images: which training images this process has left out (`on_bad_image="skip"`), and why.
        zero_shot_results: the same of the model before its first step, where it was evaluated (`eval_on_start=True`).

    Raises:
        ValueError: for anything that can be known to go wrong, before anything expensive is done.
    """

    args: StarFTConfig

    # The losses are means over the batch: Trainer has to divide them when it accumulates gradients.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: str | PathLike[str] | nn.Module,
        args: StarFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        spuriosity: SpuriosityPool | str | PathLike[str] | Sequence[str] = "background",
        reference_model: str | PathLike[str] | nn.Module | None = None,
        peft_config: PeftConfig | str | None = None,
        image_transform: ImageTransform | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        group_function: GroupFunction | None = None,
        zero_shot_probe: Any = None,
        class_mapping: Any = None,
        **kwargs: Any,
    ):
        args = StarFTConfig(output_dir="starft_output") if args is None else args
        check_arguments(args, model, peft_config, kwargs)
        check_best_metric(args, eval_dataset)
        check_mapped_sets(class_mapping, eval_dataset)
        regularizer = get_regularizer(args.regularizer)
        pool = given_pool(spuriosity, args.discovery_pool) if args.needs_pool else None
        columns = cache_plan = None
        if train_dataset is not None:
            columns = check_training_set(train_dataset, args, regularizer, pool, spuriosity, group_function)
            check_labels(train_dataset, columns, what="train_dataset", several=True)
            check_size(args, train_dataset)
            if args.save_strategy != "no" and args.should_save:
                check_writable(Path(str(args.output_dir)), "output_dir")
            if regularizer is not None:
                cache_plan = plan_cache(
                    args.reference_settings,
                    regularizer,
                    train_dataset,
                    finite_captions=columns.label is not None and columns.caption is None,
                    deterministic_images=args.crop_scale is None and image_transform is None,
                    at_least_an_epoch=not is_stream(train_dataset) and args.is_at_least_an_epoch(len(train_dataset)),
                )
        self.class_names: tuple[str, ...] | None = columns.class_names if columns is not None else None

        model = load_model(model)
        processing_class = load_processor(base_model_of(model), processing_class)
        check_dual_encoder(model)
        model = with_adapter(model, peft_config)
        self.encoder = DualEncoder.of(model, processing_class, packed=args.mini_batch_size is None)
        check_model(args, regularizer, model)
        pool = pool_of_run(spuriosity, pool, model, self.encoder, train_dataset, columns, args.discovery_settings)

        self._group_function = group_function
        self._pool = pool
        self._probes = named_probes(zero_shot_probe, args.column_settings())
        self.retention: dict[str, Retention] = {}
        self.epoch = Epoch()
        self._place = BatchPlaceCallback()
        self.bank = CaptionBank(self.class_names or (), args.caption_templates, pool, self.encoder.encode_texts)
        kind = regularizer.columns if regularizer is not None else "none"
        if train_dataset is not None and columns is not None:
            preprocessor = ImagePreprocessor(self.encoder.image_processor, args.crop_scale, image_transform)
            maker = TrainingExampleMaker(columns, preprocessor, self.bank, args.seed, self.epoch, kind == "spurious")
            train_dataset = as_examples(train_dataset, maker, args.on_bad_image)
        eval_dataset = self._evaluation_examples(eval_dataset, args, class_mapping)
        contrastive = args.base_loss == "contrastive"
        data_collator = data_collator or StarFTCollator(
            self.encoder.encode_texts, contrastive, kind == "spurious", kind != "classes"
        )

        self._alignment = make_alignment(
            model,
            self.encoder,
            reference_model,
            processing_class,
            args,
            regularizer,
            cache_plan,
            self.bank,
            train_dataset,
        )
        self.reference: Reference | None = self._alignment.reference
        self.sample_weights: SampleWeights | None = self._alignment.sample_weights

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=[EpochCallback(self.epoch), self._place, *(callbacks or [])],
            optimizers=optimizers,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        self._listen_to_signals()
        self.head: nn.Linear | None = None
        if not contrastive and self.class_names is not None:
            weights = zero_shot_weights(self.model, self.encoder, self.class_names, args.caption_templates)
            self.head = head_from_weights(weights)
            # A submodule, so that the optimiser, clipping and gradient scaling treat it as part of the model.
            self.model.add_module(HEAD_NAME, self.head)
        self.training_losses = TrainingStep(
            self.encoder,
            contrastive_base_loss if contrastive else cross_entropy_base_loss,
            regularizer,
            self.reference,
            self.head,
            args.mini_batch_size,
            self.bank,
            self.sample_weights,
        )
        self._running = RunningLosses()
        self.skipped_images = SkippedImages()
        self._reg_weight = self._alignment.reg_weight
        self.evaluation_results: dict[str, EvaluationResult] = {}
        self.zero_shot_results: dict[str, EvaluationResult] = {}
        self._evaluation: ClassifierEvaluation | None = None
        self._keep_logits = False
        self._scalars: list[str] = []

    # Training

    def _train(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> Any:
        """Training, after the reference has been prepared, between two looks at the probes."""
        self._alignment.prepare(self.args.device)
        if self.is_fsdp_enabled:
            self._scalars = prepare_for_sharding(self.model)
        if self.model_wrapped is self.model:
            forget_preparation(self.accelerator, self.model)
        self._evaluated_step = None
        before = self._evaluate_probes()
        output = super()._train(checkpoint, *args, **kwargs)
        after = self._evaluate_probes()
        self.retention = {name: Retention(before[name], after[name]) for name in before}
        if self.retention:
            figures = (kept.metrics(name) for name, kept in self.retention.items())
            self.log({key: value for part in figures for key, value in part.items()})
        self.publish_trained()
        return output

    def _evaluate_probes(self) -> dict[str, EvaluationResult]:
        args = self.args
        return evaluate_probes(
            self.model,
            self.processing_class,
            self._probes,
            templates=args.zero_shot_templates,
            image_column=args.image_column,
            label_column=args.label_column,
            batch_size=args.eval_batch_size,
            num_workers=args.dataloader_num_workers,
            on_bad_image=args.on_bad_image,
            progress=not args.disable_tqdm,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a training batch, by one forward of `model`."""
        self._reg_weight = reg_weight_at(self.args.reg_schedule, self._alignment.reg_weight, self._progress())
        batch = self._alignment.with_columns(inputs, self.state.global_step, self._place.take())
        losses = self.training_losses(model, batch, self._reg_weight)
        self._running.add(losses)
        self.skipped_images.note(inputs)
        self.finiteness.add(losses.parts)
        return (losses.loss, losses) if return_outputs else losses.loss

    def _progress(self) -> Progress:
        return Progress(
            step=self.state.global_step,
            max_steps=self.state.max_steps,
            epoch=self.epoch.value,
            num_epochs=self.state.num_train_epochs,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters that weight decay applies to."""
        if self.args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`, with the parts of the loss beside the loss of a training step, unrounded."""
        if "loss" in logs:
            state = {"reg_weight": self._reg_weight, "logit_scale": logit_scale_of(self.model).item()}
            logs = {**logs, **self._running.take(), **state}
        super().log(logs, start_time)

    # Evaluation

    def _evaluation_examples(self, dataset: Any, args: StarFTConfig, class_mapping: Any = None) -> Any:
        return evaluation_sets(
            dataset,
            args.column_settings(self._group_function),
            self.class_names,
            self.encoder.image_processor,
            class_mapping=class_mapping,
            on_bad_image=args.on_bad_image,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The data loader of an evaluation data set, given as a data set or by its name."""
        if not isinstance(eval_dataset, str):
            eval_dataset = self._evaluation_examples(eval_dataset, self.args)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The data loader of a data set to predict."""
        return super().get_test_dataloader(self._evaluation_examples(test_dataset, self.args))

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """`Trainer.evaluation_loop`, with metrics out of counts; logits are kept only where they are asked for."""
        columns = cast(Examples, dataloader.dataset).columns
        names = columns.classifier or columns.class_names or ()
        head = select_classes(self.head, self.class_names or (), names) if self.head is not None else None
        templates = self.args.zero_shot_templates
        evaluation = ClassifierEvaluation(
            self.encoder, names, templates, head, columns.class_mapping, _KEPT_MISTAKES, columns.class_names
        )
        self._evaluation = evaluation
        self._keep_logits = self.compute_metrics is not None or description == "Prediction"
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        self._evaluation = None
        result = evaluation.result(training_group_shares(self.train_dataset))
        name = metric_key_prefix.removeprefix("eval_")
        self.evaluation_results[name] = result
        self._evaluated_step = self.state.global_step
        if self.state.global_step == 0:
            self.zero_shot_results[name] = result
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in result.metrics().items()})
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Classify one batch; returns no loss, and logits and labels where they are kept."""
        assert self._evaluation is not None
        batch = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            logits = self._evaluation.step(model, batch)
        return (None, logits, labels_that_count(batch)) if self._keep_logits else (None, None, None)

    # Saving and loading

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        state_dict = with_scalars(state_dict, self._scalars)
        # The encoder is saved as what it was given as; its head goes into a file of its own.
        head = (
            {name: state_dict.pop(f"{HEAD_NAME}.{name}") for name in ("weight", "bias")}
            if self.head is not None
            else {}
        )
        super()._save(output_dir, state_dict)
        if head:
            save_head(head, self.class_names or (), output_dir)
        if is_adapted(self.model):
            save_temperature(self.model, output_dir, state_dict)
        self.save_record(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_head(self.state.best_model_checkpoint)

    def _load_head(self, folder: str | None) -> None:
        if self.head is not None and folder is not None:
            self.head.load_state_dict(load_head(folder)[0].state_dict())
