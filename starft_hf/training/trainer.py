"""`StarFTTrainer`: wires the parts of a run into the `Trainer` of transformers, and computes nothing itself.

`RunSetup.resolve` checks everything a run was given and loads everything it needs. `train` finds the checkpoint to
resume from, fills the cache of the frozen reference, measures what must not be forgotten, lets `Trainer` loop, and
publishes. In every step `compute_loss` makes one forward, which the base loss and the regularizer share.
"""

from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, EvalPrediction

from starft_hf.data.decoding import SkippedImages
from starft_hf.data.groups import GroupFunction
from starft_hf.data.images import ImageTransform
from starft_hf.data.workers import explained_worker_deaths
from starft_hf.evaluation.loop import evaluation_of, labels_that_count, training_group_shares
from starft_hf.evaluation.results import Retention, retention_metrics
from starft_hf.models.encoder import logit_scale_of
from starft_hf.models.fsdp import before_sharding, complete_state, forget_dataloader, ready_accelerator, ready_to_train
from starft_hf.models.heads import select_classes
from starft_hf.objectives.schedules import Progress, reg_weight_at
from starft_hf.spuriosity.auto import Spuriosity
from starft_hf.training.batch_check import OneClassCheck, check_examples, check_keys
from starft_hf.training.callbacks import BatchCounterCallback, complete_callbacks, resuming_callbacks
from starft_hf.training.checkpointing.checkpointer import Checkpointer
from starft_hf.training.checkpointing.files import read_content
from starft_hf.training.checkpointing.interruption import TrainingInterrupted, end_interrupted, replace_jit_checkpoint
from starft_hf.training.checkpointing.resuming import ResumeCheck, ResumeState
from starft_hf.training.checkpointing.run_settings import run_settings
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.hub_mixin import HubMixin
from starft_hf.training.learning_rate import schedule_of
from starft_hf.training.measurements import Measurements, data_key
from starft_hf.training.nan_check import NaNCheck
from starft_hf.training.parameter_groups import with_rates
from starft_hf.training.plan import NO_SEARCH, RunInputs
from starft_hf.training.sampling import evaluation_sampler, examples_of, ready_loader, training_sampler
from starft_hf.training.saving import save_weights
from starft_hf.training.setup import RunSetup
from starft_hf.training.step import RunningLosses
from starft_hf.training.trained_weights import check_trained, evaluation_precision


class StarFTTrainer(HubMixin, Trainer):
    """Fine-tunes a dual encoder such as CLIP so that it stays robust (arXiv 2505.13232).

    Args:
        model: a Hub id, a path or a loaded dual encoder (CLIP, SigLIP, ...). Before training, it is the reference.
        args: the settings; None takes the defaults.
        train_dataset: a `datasets` Dataset or IterableDataset with an Image and a ClassLabel column, or any torch
            dataset whose rows are mappings with these columns.
        eval_dataset: one such dataset or a dictionary of several. Each may have its own classes; one with captions and
            no labels is evaluated by retrieval.
        processing_class: the model's processor, or where to load it from; None loads it from the model's source.
        spuriosity: the pool of spurious templates: a built-in name ("background", "texture", "resolution", "objects",
            "style", "all"), a path, a Hub repository, a list of templates or a `SpuriosityPool`.
        reference_model: a reference other than the model before training; a Hub id, a path or a loaded model.
        peft_config: trains an adapter instead of the model: any PEFT configuration that fits, or "lora" (attention of
            both towers), "lora-vision" or "lora-text". A `PeftModel` may be given as `model` as well. The reference is
            then the model with its adapter switched off, without a second copy of the weights.
        image_transform: replaces the random crop of training images: from a PIL image to a PIL image, which the image
            processor prepares, or to a tensor `(3, H, W)` of floats that are normalized already. What it draws from
            the global generators is keyed to the sample.
        data_collator: replaces `StarFTCollator`.
        compute_metrics: further metrics, from an `EvalPrediction` with the logits of the whole set. Without it no
            logits are kept.
        callbacks: further callbacks.
        optimizers: optimizer and learning-rate scheduler.
        group_function: names the evaluation group of a row, from its columns other than the image; replaces
            `group_column`.
        class_mapping: for an evaluation set whose labels stand for classes of the training set, as ImageNet-R's and
            ObjectNet's: for every label the indices into `class_names`, of which the best counts; a dictionary by the
            names of the sets where there are several.
        zero_shot_probe: a retention set: a dataset of another task, or a dictionary of several. One with labels is
            classified zero-shot before and after training, and one with only captions is evaluated by retrieval, to
            measure what the model forgets. See `retention`.
        kwargs: the rest of `Trainer`'s arguments.

    Attributes:
        reference: the frozen reference, or None with regularizer="none".
        sample_weights: the weights of the training images, or None with reweight="none".
        class_names: the classes of the training set, or None without labels or training set.
        retention: results on the retention sets before and after training, by their names.
        evaluation_results: results of the latest evaluations, by the name of the dataset ("eval" for a single one).
            With `load_best_model_at_end`, after training those of the best model.
        skipped_images: which training images this process has skipped (`on_bad_image="skip"`), and why.
        zero_shot_results: evaluation results of the model as given, by `evaluate()` before the first `train()` or by
            `eval_on_start=True`; a further `train()` leaves them as they are.

    Raises:
        ValueError: for anything that can be known to go wrong, before anything expensive is done.
    """

    args: StarFTConfig
    _evaluation: Any = None
    _scalars: Sequence[str] = ()
    _initial_global_step = 0

    # The losses are means over the batch: Trainer has to divide them when it accumulates gradients.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: str | PathLike[str] | nn.Module,
        args: StarFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        spuriosity: Spuriosity = "background",
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
        # In the order of `RunInputs`, whose fields these arguments are.
        data = (train_dataset, eval_dataset, processing_class, spuriosity, reference_model, peft_config)
        passed = {**kwargs, "optimizers": optimizers, "compute_metrics": compute_metrics}
        more = (image_transform, group_function, zero_shot_probe, class_mapping, passed)
        self.setup = setup = RunSetup.resolve(RunInputs(model, args, *data, *more))
        self.encoder, self.bank, self.epoch, self.reference = setup.encoder, setup.bank, setup.epoch, setup.reference
        self.class_names, self.sample_weights = setup.class_names, setup.sample_weights
        self.batch_counter = BatchCounterCallback()
        super().__init__(
            model=setup.model,
            args=args,
            data_collator=setup.collator(data_collator),
            train_dataset=setup.train_dataset,
            eval_dataset=setup.eval_dataset,
            processing_class=setup.processor,
            compute_metrics=compute_metrics,
            callbacks=[*setup.callbacks(), self.batch_counter, ResumeCheck(), *(callbacks or [])],
            optimizers=optimizers,
            **kwargs,
        )
        ready_accelerator(self.accelerator, self.model, args)
        self.model_accepts_loss_kwargs = False
        self.head = setup.add_head(self.model)
        check_trained(self.model, self.head, *optimizers)
        self.training_losses = setup.training_step(self.head, self.accelerator)
        self.running_losses, self.nan_check, self.skipped_images = RunningLosses(), NaNCheck(), SkippedImages()
        self.checkpointer, self.one_class_check, self.measured = Checkpointer(), OneClassCheck(), Measurements()
        complete_callbacks(self)
        self.interruption, self.reg_weight = replace_jit_checkpoint(self), setup.reg_weight
        self.retention: dict[str, Retention] = {}
        self.evaluation_results, self.zero_shot_results = self.measured.latest, self.measured.before
        self.evaluated_columns = {}

    # Training

    def train(
        self, resume_from_checkpoint: str | PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """`Trainer.train`, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint to resume from, as if the run had never ended; or True for the last
                valid one in `output_dir`, and to start from the beginning where there is none. None takes the setting.
            args: of `Trainer.train`.
            kwargs: of `Trainer.train`.

        Raises:
            CheckpointError: as `checkpoint_to_resume`, before anything else; or if a checkpoint cannot be written.
            TrainingInterrupted: after SIGTERM, once a checkpoint is saved; uncaught it is exit code 75.
        """
        check_examples(self.train_dataset)
        resume = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        check_trained(self.model, self.head, None if self.is_fsdp_enabled else self.optimizer)
        self.record_start()
        self.checkpointer.start(self.args, self._run_settings)
        try:
            with self.checkpointer.exclusive(self.args), explained_worker_deaths():
                # There is nothing to save before training, nor after it.
                with self.interruption.ending_at_once(self.args):
                    checkpoint = self.checkpoint_to_resume(resume)
                    self.checkpointer.remove_flawed(self.args)
                    self.running_losses.restore(None, self.args.device)
                    self.setup.prepare(self.args.device)
                    self.measure_start(checkpoint)
                    self._prepare_model()
                with self.interruption.listening(self.args):
                    output = super().train(checkpoint and str(checkpoint), *args, **kwargs)
                with self.interruption.ending_at_once(self.args):
                    self._record_retention()
                    self.publish_trained()
        except TrainingInterrupted as interrupted:
            end_interrupted(self, interrupted)
            raise
        return output

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a training batch, by one forward of `model`."""
        self.measured.at_start = False
        state, epoch = self.state, self.setup.epoch.value
        progress = Progress(state.global_step, state.max_steps, epoch, state.num_train_epochs)
        self.reg_weight = reg_weight_at(self.args.reg_schedule, self.setup.reg_weight, progress)
        check_keys(inputs, self.setup)
        batch = self.setup.with_texts(inputs, self.state.global_step, self.batch_counter.advance())
        self.one_class_check.check(inputs, self.args, self.train_dataset)
        losses = self.training_losses(model, batch, self.reg_weight)
        self.running_losses.add(losses)
        self.nan_check.add(losses.parts)
        self.skipped_images.record(inputs)
        return (losses.loss, losses) if return_outputs else losses.loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        adds = type(self).compute_loss is not StarFTTrainer.compute_loss  # to the loss, which is logged with it
        return self.running_losses.corrected(loss, self.current_gradient_accumulation_steps) if adds else loss

    def _prepare_model(self) -> None:
        """Make the model ready for FSDP and, after an evaluation, for training."""
        self._scalars = (*self._scalars, *ready_to_train(self))
        self._evaluated_step = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`, with the parts of the loss beside the loss of a training step, and no spaces in keys."""
        if "loss" in logs:
            state = {"reg_weight": self.reg_weight, "logit_scale": logit_scale_of(self.model).item()}
            logs = {**logs, **self.running_losses.pop(), **state}
        super().log({"_".join(name.split()): value for name, value in logs.items()}, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters that weight decay applies to."""
        decays_all = self.args.decay_all_parameters
        return list(dict(model.named_parameters())) if decays_all else super().get_decay_parameter_names(model)

    def create_optimizer(self, model: Any = None) -> Any:
        """`Trainer.create_optimizer`, with the learning rates of `layer_decay` and `learning_rates`."""
        is_new, optimizer = self.optimizer is None, super().create_optimizer(model)
        return with_rates(optimizer, self.model if model is None else model, self.args) if is_new else optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """`Trainer.create_scheduler`, with `warmup_from_zero`, and plateaus of metrics."""
        is_new, scheduler = self.lr_scheduler is None, super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler: Any = schedule_of(scheduler, self.args, num_training_steps) if is_new else scheduler
        return self.lr_scheduler

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(NO_SEARCH)

    # The hooks of Trainer's loop: one line each, to the component that is responsible.

    def _update_auto_batch_size(self, batch_size: int) -> None:
        self.setup.restart(batch_size, self._train_batch_size, self.state.global_step - self._initial_global_step)
        self.running_losses.restore(None, self.args.device)
        super()._update_auto_batch_size(batch_size)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        sampler, order = super()._get_train_sampler(train_dataset), (self.setup.epoch, self.setup.plan.strata)
        return training_sampler(sampler, dataset, self.args, self._train_batch_size, *order)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return evaluation_sampler(super()._get_eval_sampler(eval_dataset), eval_dataset, self.args)

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader[Any]:
        return ready_loader(super()._get_dataloader(*args, is_training=is_training, **kwargs), self.args, is_training)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm, scaled = super()._get_grad_norm(model, grad_norm=grad_norm), self.accelerator.scaler is not None
        return self.nan_check.check(self.model, norm, self.state.global_step + 1, scaled=scaled)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that ended in the middle of an epoch would take one more step before it checks.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # Evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The data loader of an evaluation set, given as a dataset or by its name."""
        if not isinstance(eval_dataset, str):
            eval_dataset = self.setup.evaluation_examples(eval_dataset, self.args)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The data loader of a dataset to predict."""
        return super().get_test_dataloader(self.setup.examples_to_predict(test_dataset, self.args))

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """`Trainer.evaluation_loop`, with metrics from counts; logits are kept only where they are needed."""
        prefix = args[2] if len(args) > 2 else kwargs.get("metric_key_prefix", "eval")
        columns = (examples := examples_of(dataloader)).columns
        names = columns.classifier or columns.class_names or ()
        head = None if self.head is None or not names else select_classes(self.head, self.class_names or (), names)
        evaluation = evaluation_of(self.encoder, columns, self.args.zero_shot_templates, head, self.class_names)
        self._evaluation, self._keep_logits = evaluation, evaluation.keeps_logits(self.compute_metrics, description)
        with evaluation_precision(self.args, self.model), before_sharding(self):
            output = super().evaluation_loop(dataloader, description, *args, **kwargs)
            result = evaluation.result(training_group_shares(self.train_dataset, columns))
        self._evaluation = None
        forget_dataloader(self.accelerator, dataloader)
        name = prefix.removeprefix("eval_")
        self.measured.record(name, result, self.model, data_key(examples, self.eval_dataset))
        self.evaluated_columns[name], self._evaluated_step = columns, self.state.global_step
        logged = result.logged(columns.groups is not None, self.args.metric_for_best_model)
        output.metrics.update({f"{prefix}_{name}": value for name, value in logged.items()})
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Classify one batch; returns no loss, and logits and labels where they are kept."""
        assert self._evaluation is not None
        batch = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            logits = self._evaluation.step(model, batch)
        return (None, logits, labels_that_count(batch)) if self._keep_logits else (None, None, None)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        # `eval_on_start` evaluates the model before its first step, which a resumed run has taken already.
        if skip_scheduler and self.state.global_step > 0:
            return None
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        # With save_strategy="best", it decides whether the checkpoint of an interrupted run is saved.
        return super()._determine_best_metric(metrics, trial) or self.interruption.stopping

    def _record_retention(self) -> None:
        after = self.setup.evaluate_retention_sets(self.model, self.args, self.accelerator)
        self.retention = self.measured.retention(after, self.model)
        if self.retention:
            self.log(retention_metrics(self.retention))

    # Saving and resuming

    @property
    def _resume_state(self) -> ResumeState:
        callbacks = resuming_callbacks(self.callback_handler.callbacks)
        return ResumeState(self.args, self.state, self.model, callbacks, self.running_losses, self.measured)

    def checkpoint_to_resume(self, resume_from_checkpoint: str | PathLike[str] | bool | None) -> Path | None:
        """The checkpoint that `train` would resume from, verified; None to start from the beginning.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last valid one in `output_dir`. Invalid ones, such as
                one that a killed run left half written, are skipped with a warning.

        Raises:
            CheckpointError: if the checkpoint is damaged, or was written by a run with other settings, pool, classes,
                model or data that change the outcome, naming the differences. With
                `ignore_mismatched_settings=True` these are a warning.
        """
        return self.checkpointer.find(self.args, resume_from_checkpoint, self._run_settings)

    def _run_settings(self) -> dict[str, Any]:
        self.record_start()
        return run_settings(self.args, self.record, self.model, self.train_dataset, self.setup.plan.passed)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.accelerator.is_fsdp2:
            complete_state(self.optimizer)
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        save = partial(super()._save_checkpoint, model, trial)
        self.checkpointer.write(self.args, folder, save, self.state, self._resume_state.save, self._run_settings)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.checkpointer.once_valid(super()._push_from_checkpoint, checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = str(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return super()._save(folder, state_dict)
        names = None if self.head is None else self.class_names
        save_weights(super()._save, folder, self.model, state_dict, names, self._scalars)
        self.save_record(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self.setup.loading(resume_from_checkpoint, self.head):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._resume_state.load(resume_from_checkpoint)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        with self.checkpointer.ending(self.args, self.state):
            return super()._finalize_training(*args, **kwargs)

    def _load_best_model(self) -> None:
        with self.setup.loading(self.state.best_model_checkpoint, self.head):
            super()._load_best_model()
        self.measured.load(read_content(Path(str(self.state.best_model_checkpoint))) or {}, self.model)
