"""A run, ready to be trained: all checks first, as `RunPlan` has them, then all loading."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from starft_hf.data.captions import CaptionBank, check_class_prompts
from starft_hf.data.class_texts import ClassTexts
from starft_hf.data.collator import Collator, StarFTCollator, WithFloatImages
from starft_hf.data.evaluation_sets import evaluation_sets
from starft_hf.data.examples import Epoch, IndexedExamples, TrainingExampleMaker, as_examples
from starft_hf.data.groups import GroupFunction
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.multi_label_examples import MultiLabelExampleMaker
from starft_hf.evaluation.results import AnyResult
from starft_hf.evaluation.retention import evaluate_retention_set
from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.hub.record import MULTI_LABEL, model_source
from starft_hf.models.adapters import base_model_of, base_state, check_adapters, is_adapted, with_adapter
from starft_hf.models.encoder import DualEncoder, logit_scale_of
from starft_hf.models.heads import HEAD_NAME
from starft_hf.models.loading import check_dual_encoder, load_model, load_processor
from starft_hf.models.parts import HEAD
from starft_hf.models.precision import forward_autocast, remove_autocast, run_autocast, without_autocast
from starft_hf.models.sigmoid import remove_added_bias
from starft_hf.models.texts import TextEncoding
from starft_hf.objectives.regularizers import AUTO_WEIGHT
from starft_hf.reference import Reference, make_live_reference, make_reference
from starft_hf.spuriosity.auto import pool_of_run
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.training.batch_check import check_collator, check_to_predict
from starft_hf.training.batch_size import check_batch, check_retry
from starft_hf.training.callbacks import EpochCallback
from starft_hf.training.candidates import Candidates, NoCandidates
from starft_hf.training.checkpointing.files import CheckpointError
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.discovery import discovery_settings
from starft_hf.training.frozen_texts import FrozenTexts, frozen_texts
from starft_hf.training.logit_scale import LogitScaleCallback
from starft_hf.training.multi_label import add_start_bias
from starft_hf.training.parameter_groups import describe, freeze_parts, frozen_norms, frozen_towers, trained_parts
from starft_hf.training.plan import RunInputs, RunPlan, reference_settings
from starft_hf.training.reweighting import SampleWeights
from starft_hf.training.saving import restore_weights
from starft_hf.training.step import TrainingStep, base_loss
from starft_hf.training.trained_weights import in_float32, keeping_frozen, ready_modules
from starft_hf.utils.hashing import tensors_digest


logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class RunSetup:
    """A run, ready to be trained.

    Attributes:
        args: its settings.
        group_function: names the evaluation group of a row, or None.
        plan: what was known before anything was loaded.
        model: the model to train, with its adapter.
        processor: its processor.
        encoder: its spec.
        pool: the spurious templates it trains with, or None.
        bank: the captions of its classes.
        candidates: what the regularizer compares images with.
        epoch: the current epoch, which the draws of the examples depend on.
        train_dataset: the training examples, or None.
        eval_dataset: the evaluation examples, of several sets by name, or None.
        reg_weight: weight of the regularizer at the start of the run.
        reference: the frozen reference, or None without regularizer.
        sample_weights: the weights of the training images, or None where all are 1.
        reference_source: where the reference comes from, if it is not the model as given; for the record.
        frozen_texts: the embeddings of the captions by a frozen text tower, or None where it is trained.
        in_eval_mode: modules of which nothing is trained, and which compute as in evaluations.
    """

    args: StarFTConfig
    group_function: GroupFunction | None
    plan: RunPlan
    model: nn.Module
    processor: Any
    encoder: DualEncoder
    pool: SpuriosityPool | None
    bank: CaptionBank
    candidates: Candidates
    epoch: Epoch
    train_dataset: Any
    eval_dataset: Any
    reg_weight: float
    reference: Reference | None = None
    sample_weights: SampleWeights | None = None
    reference_source: dict[str, Any] | None = None
    frozen_texts: FrozenTexts | None = None
    in_eval_mode: Sequence[nn.Module] = ()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes of the training set, or None without labels or training set."""
        return self.plan.class_names

    @property
    def regularizer_name(self) -> str | None:
        """The name of the regularizer, also where the setting is "auto"; None without one or without training set."""
        regularizer = self.plan.regularizer
        return None if regularizer is None or self.reference is None else regularizer.name

    @classmethod
    def resolve(cls, given: RunInputs) -> "RunSetup":
        """Check what a run is given, then load and build what it is made of."""
        plan, args = RunPlan.check(given), given.args

        # Weights that are initialized anew depend on the seed alone, and not on what was drawn before.
        set_seed(args.seed)
        trusted = {"trust_remote_code": args.trust_remote_code}
        model = remove_autocast(load_model(given.model, **trusted))
        processor = load_processor(base_model_of(model), given.processing_class, **trusted)
        check_dual_encoder(model)
        set_seed(args.seed)
        if args.base_loss != MULTI_LABEL:
            remove_added_bias(model)
        model = in_float32(with_adapter(model, given.peft_config))
        encoder = DualEncoder.of(model, processor, packed=args.mini_batch_size is None)
        plan.check_model(args, model)
        freeze_parts(model, args)
        if given.train_dataset is not None:
            ready_modules(model, args, compares=plan.regularizer is not None)

        pool = pool_of_run(
            given.spuriosity, plan.pool, model, encoder, plan.train_dataset, plan.columns, discovery_settings(args)
        )
        drawn = pool and pool.with_plain_captions(plan.plain_share)
        bank = CaptionBank(plan.class_names or (), args.caption_templates, drawn, encoder.encode_texts)
        strategy = plan.strategy if given.train_dataset is not None else NoCandidates
        known = _frozen_texts(given, plan, model, encoder, bank)
        candidates = strategy(bank, _encoding(known, plan, encoder), args.seed, args.reg_max_classes)
        epoch = Epoch()
        train_dataset = _training_examples(given, plan, encoder, bank, candidates, epoch)
        eval_dataset = evaluation_sets(
            given.eval_dataset,
            args.column_settings(given.group_function),
            plan.columns,
            ImagePreprocessor(encoder.image_processor, decoding=args.image_decoding),
            task=args.eval_task,
            class_mapping=given.class_mapping,
            on_bad_image=args.on_bad_image,
            cache=args.image_cache_settings(),
        )
        _check_prompts(eval_dataset, args, encoder)

        reference = sample_weights = source = None
        if train_dataset is not None and (plan.cache is not None or args.reweight != "none"):
            start = _reference_model(given, model)
            settings = reference_settings(args)
            live = make_live_reference(
                start, DualEncoder.of(start, processor, packed=args.mini_batch_size is None), settings
            )
            if given.reference_model is not None:
                source = model_source(start, tensors_digest(base_state(start)))
            if args.reweight != "none":
                sample_weights = SampleWeights(live, train_dataset, bank, settings, args.reweight_clip)
            if plan.cache is not None:
                reference = make_reference(live, settings, plan.cache, bank, train_dataset)
        return cls(
            args=args,
            group_function=given.group_function,
            plan=plan,
            model=model,
            processor=processor,
            encoder=encoder,
            pool=pool,
            bank=bank,
            candidates=candidates,
            epoch=epoch,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            reg_weight=_reg_weight(plan, args),
            reference=reference,
            sample_weights=sample_weights,
            reference_source=source,
            frozen_texts=known,
            in_eval_mode=[*frozen_towers(model), *frozen_norms(model, args.freeze)],
        )

    def callbacks(self) -> list[TrainerCallback]:
        """Those of every run that depend on its parts."""
        start = logit_scale_of(self.model).item()
        return [EpochCallback(self.epoch), LogitScaleCallback(start, self.args.max_logit_scale)]

    def prepare(self, device: torch.device) -> None:
        """Do what has to be done once, before the first step, such as filling the reference's cache."""
        # One may have been added since the run was set up.
        check_adapters(self.model)
        if isinstance(self.train_dataset, IndexedExamples):
            if not self.args.dataloader_num_workers:
                # What is wrong with every row is found first. With workers, a transform may need to be in one.
                self.train_dataset[0]
            self.train_dataset.prepare(device)
        # The sample weights first: the reference may release the weights that both need.
        with without_autocast(self.model):
            for part in (self.sample_weights, self.reference, self.frozen_texts):
                if part is not None:
                    part.prepare(device)
        logger.info_once(describe(trained_parts(self.model, self.args)))

    @contextmanager
    def loading(self, checkpoint: str | PathLike[str] | None, head: nn.Linear | None) -> Iterator[None]:
        """Within, `Trainer` loads a checkpoint; what it leaves out is loaded on exit, and what was frozen stays so.

        Raises:
            CheckpointError: if it has other weights of a text tower that is frozen, whose embeddings are known.
        """
        with keeping_frozen(self.model):
            yield
            restore_weights(self.model, head, checkpoint)
        if self.frozen_texts is not None and not self.frozen_texts.is_up_to_date():
            raise CheckpointError(
                "the checkpoint has another text tower than the model, and the text tower is frozen; to start from "
                "the weights in the checkpoint, pass it as the model"
            )

    def restart(self, batch_size: int, previous: int, steps: int) -> None:
        """Start the run with a number of images per device, in place of the `previous` with which it took `steps`."""
        check_retry(batch_size, previous, steps)
        check_batch(batch_size * self.args.world_size, self.args.base_loss, self.plan.strategy)
        set_seed(self.args.seed)

    def collator(self, own: Collator | None = None) -> Collator:
        """What makes batches of training and evaluation examples; a user's `own` gets normalized images."""
        if own is not None:
            check_collator(own)
            values = self.encoder.byte_values
            # A subclass may do anything with images.
            return own if values is None or type(own) is StarFTCollator else WithFloatImages(own, values)
        return StarFTCollator(
            _encoding(self.frozen_texts, self.plan, self.encoder),
            with_captions=self.args.base_loss == "contrastive",
            with_spurious_captions=self.candidates.drawn_per_example,
            encode_captions=not self.candidates.drawn_per_batch and self.args.base_loss != MULTI_LABEL,
        )

    def with_texts(self, batch: Mapping[str, Any], step: int, part: int) -> Mapping[str, Any]:
        """A training batch with the texts that all of its images are compared with."""
        batch = self.candidates.add_to(batch, step, part)
        if self.args.base_loss != MULTI_LABEL:
            return batch
        encode = _encoding(self.frozen_texts, self.plan, self.encoder)
        return ClassTexts(self.bank, encode, self.args.seed)(batch, step, part)

    def add_head(self, model: nn.Module) -> nn.Linear | None:
        """The linear head of cross-entropy runs, from the prompts of the classes; None for others.

        It becomes a submodule of `model`, so that the optimizer, clipping and gradient scaling treat it as part of it;
        as does the bias of multi-label runs, where the model has none.
        """
        if self.args.base_loss == MULTI_LABEL:
            add_start_bias(model, self.encoder, self.train_dataset, self.args)
        if self.args.base_loss != "cross_entropy" or self.class_names is None:
            return None
        head = zero_shot_head(model, self.encoder, self.class_names, self.args.zero_shot_templates)
        head.requires_grad_(HEAD not in (self.args.freeze or ()))
        model.add_module(HEAD_NAME, head)
        return head

    def training_step(self, head: nn.Linear | None, accelerator: Any) -> TrainingStep:
        """What computes the losses of a batch, by a model that `accelerator` prepares."""
        autocast = partial(forward_autocast, accelerator)
        own = autocast if is_adapted(self.model) else partial(run_autocast, accelerator)
        return TrainingStep(
            self.encoder,
            base_loss(self.args.base_loss, self.args.label_smoothing_factor),
            self.candidates,
            self.plan.regularizer,
            self.reference,
            head,
            self.args.mini_batch_size,
            self.sample_weights,
            self.args.freeze_batch_norm,
            self.in_eval_mode,
            self.frozen_texts,
            autocast,
            # A dtype that is asked for is that of the computation too.
            own if self.args.reference_dtype is None else nullcontext,
        )

    def evaluate_retention_sets(self, model: nn.Module, args: StarFTConfig, accelerator: Any) -> dict[str, AnyResult]:
        """How `model` does on what must not be forgotten, by name, in the precision of the run."""
        reading = {
            "batch_size": args.eval_batch_size,
            "num_workers": args.dataloader_num_workers,
            "on_bad_image": args.on_bad_image,
            "image_decoding": args.image_decoding,
            "image_cache": args.image_cache,
            "progress": not args.disable_tqdm,
        }
        how = (args.column_settings(), args.zero_shot_templates)
        sets = self.plan.retention_sets.items()
        with run_autocast(accelerator):
            return {name: evaluate_retention_set(model, self.processor, one, *how, **reading) for name, one in sets}

    def evaluation_examples(self, dataset: Any, args: StarFTConfig) -> Any:
        """The evaluation examples of a dataset or, by name, of several; what are examples already stays."""
        preprocessor = ImagePreprocessor(self.encoder.image_processor, decoding=args.image_decoding)
        columns = args.column_settings(self.group_function)
        given = (dataset, columns, self.plan.columns, preprocessor)
        how: Any = {"task": args.eval_task, "on_bad_image": args.on_bad_image}
        return evaluation_sets(*given, **how, cache=args.image_cache_settings())

    def examples_to_predict(self, dataset: Any, args: StarFTConfig) -> Any:
        """The same of a dataset to predict.

        Raises:
            ValueError: if it has no labels.
        """
        check_to_predict(dataset, args)
        examples = self.evaluation_examples(dataset, args)
        if getattr(examples, "columns", None) is not None and examples.columns.label is None:
            raise ValueError(
                "the dataset to predict has captions and no labels, and predict() classifies images; pass it to "
                "evaluate(), which measures retrieval, or set eval_task='classification'"
            )
        return examples


def _frozen_texts(
    given: RunInputs, plan: RunPlan, model: nn.Module, encoder: DualEncoder, bank: CaptionBank
) -> FrozenTexts | None:
    if plan.columns is None or plan.columns.caption is not None:
        # These captions are embedded in every step, without gradients.
        return None
    store = plan.cache.store if plan.cache is not None and plan.cache.texts else None
    spurious = plan.strategy.drawn_per_example or plan.strategy.drawn_per_batch
    return frozen_texts(model, encoder, bank, store, given.args, spurious=spurious)


def _encoding(known: FrozenTexts | None, plan: RunPlan, encoder: DualEncoder) -> TextEncoding | None:
    """What encodes the texts of a batch; None if all their embeddings are known."""
    # The reference needs no texts of a batch if it has the embeddings of captions by their ids.
    of_reference = plan.cache is None or plan.cache.texts or not plan.strategy.needs_embeddings
    return None if known is not None and of_reference else encoder.encode_texts


def _training_examples(
    given: RunInputs, plan: RunPlan, encoder: DualEncoder, bank: CaptionBank, candidates: Candidates, epoch: Epoch
) -> Any:
    if plan.columns is None:
        return None
    args = given.args
    shared = (args.crop_scale, given.image_transform, args.image_decoding)
    preprocessor = ImagePreprocessor(encoder.image_processor, *shared)
    kind = TrainingExampleMaker if plan.columns.several is None else MultiLabelExampleMaker
    maker = kind(plan.columns, preprocessor, bank, args.seed, epoch, candidates.drawn_per_example)
    # What a transform does to an image is not known. Without `crop_scale`, it should not enlarge parts of it.
    crop_scale = args.crop_scale or (None if given.image_transform is None else (1.0, 1.0))
    cache = args.image_cache_settings(crop_scale)
    return as_examples(plan.train_dataset, maker, args.on_bad_image, args.shuffle, cache)


def _check_prompts(eval_dataset: Any, args: StarFTConfig, encoder: DualEncoder) -> None:
    """Check the prompts of the classes of evaluation sets, which are first needed after some training."""
    for examples in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
        if examples is not None and examples.columns.label is not None:
            names = examples.columns.classifier or examples.columns.class_names
            check_class_prompts(names, args.zero_shot_templates, encoder.encode_texts)


def _reference_model(given: RunInputs, model: nn.Module) -> nn.Module:
    if given.reference_model is None:
        return model
    reference = load_model(given.reference_model, trust_remote_code=given.args.trust_remote_code)
    if is_adapted(reference):
        raise ValueError(
            "reference_model is a PeftModel, whose adapter a reference would switch off; pass "
            "reference_model.merge_and_unload() to compare with the adapted model, or its get_base_model()"
        )
    return reference


def _reg_weight(plan: RunPlan, args: StarFTConfig) -> float:
    if plan.regularizer is None:
        return 0.0 if args.reg_weight == AUTO_WEIGHT else float(args.reg_weight)
    weight = plan.regularizer.weight(args.reg_weight, len(plan.class_names or ()) or None)
    if args.base_loss == MULTI_LABEL and args.reg_weight == AUTO_WEIGHT:
        # That for many classes. This base loss is a mean over the classes rather than the log-likelihood of a label.
        weight = plan.regularizer.weight(AUTO_WEIGHT, None) / max(1, len(plan.class_names or ()))
    if (choice := plan.choice_in_words(args, weight)) is not None:
        # Once, since a comparison makes many runs with the same settings.
        logger.info_once(choice)
    return weight
