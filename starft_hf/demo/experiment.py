"""One fine-tuning run of the demo, through the public `StarFTTrainer`."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from datasets import Dataset
from transformers import AutoProcessor, CLIPModel, PrinterCallback, TrainerCallback

from starft_hf import StarFTConfig, StarFTTrainer, interpolate
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import (
    BACKGROUND_TEMPLATES,
    CAPTION_TEMPLATE,
    UNRELATED_TEMPLATES,
    make_split,
)
from starft_hf.names import unknown_name
from starft_hf.regularizers import NO_REGULARIZER


# The method's name in the demo and its regularizer.
METHODS = {"FLYP": NO_REGULARIZER, "kl": "kl", "star": "star"}
ZERO_SHOT = "zero-shot"

POOLS = {"background": BACKGROUND_TEMPLATES, "unrelated": UNRELATED_TEMPLATES, "plain": ("{}.",)}

# Splits that every run is scored on, whatever its own seed.
_SCORING_SEED = 1000


@dataclass(frozen=True)
class Setting:
    """What the runs of a demo have in common.

    Attributes:
        model: folder of the pre-trained model.
        pool: which templates the regularizers see, a key of `POOLS`.
        correlation: share of a class's training images on its home background.
        split: what is scored: "test", or "validation" for choosing settings.
        reg_weight: weight of the regularizer, constant. The demo's model has a logit scale of about 15 rather than
            CLIP's 100, and its alignment losses are as much smaller; 30 was chosen on the validation split.
        learning_rate: the same for every method, as are steps and the order of the data.
        steps: optimiser steps.
        batch_size: images per step.
        alpha: share of the fine-tuned weights where weights are interpolated.
    """

    model: str = str(MODEL_FOLDER)
    pool: str = "background"
    correlation: float = 0.95
    split: str = "test"
    reg_weight: float = 30.0
    learning_rate: float = 4e-4
    steps: int = 100
    batch_size: int = 64
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(unknown_name("pool", self.pool, POOLS))


@dataclass(frozen=True)
class Score:
    """How one model did. Accuracies are shares.

    Attributes:
        method: "zero-shot" or a key of `METHODS`.
        seed: of the run.
        interpolated: whether the weights are half-way to the zero-shot model's.
        average: accuracy over the scored split.
        worst_group: accuracy of its worst group.
        groups: accuracy of every group.
        held_out: accuracy on the classes that fine-tuning never sees.
    """

    method: str
    seed: int
    interpolated: bool
    average: float
    worst_group: float
    held_out: float
    groups: dict[str, float] = field(default_factory=dict)


class _StepCallback(TrainerCallback):
    def __init__(self, on_step: Callable[[], None]):
        self.on_step = on_step

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_step()


def run_zero_shot(setting: Setting) -> list[Score]:
    """Score the pre-trained model as it is."""
    with tempfile.TemporaryDirectory() as folder:
        return [_score(_trainer(setting, NO_REGULARIZER, 0, None, folder), setting, ZERO_SHOT, 0)]


def run_method(setting: Setting, method: str, seed: int, on_step: Callable[[], None] | None = None) -> list[Score]:
    """Fine-tune with a method and score the result, and its interpolation with the zero-shot model.

    Args:
        setting: what the runs have in common.
        method: a key of `METHODS`.
        seed: of the training images and of the run.
        on_step: called after every optimiser step.
    """
    train = make_split("train", seed=seed, correlation=setting.correlation)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(setting, METHODS[method], seed, train, folder)
        if on_step is not None:
            trainer.add_callback(_StepCallback(on_step))
        trainer.train()
        tuned = _score(trainer, setting, method, seed)
        merged = interpolate(_load_model(setting.model), trainer.model, setting.alpha)
        trainer.model.load_state_dict(merged.state_dict())
        return [tuned, _score(trainer, setting, method, seed, interpolated=True)]


def _load_model(folder: str | PathLike[str]) -> CLIPModel:
    return CLIPModel.from_pretrained(folder, local_files_only=True)


def _trainer(setting: Setting, regularizer: str, seed: int, train: Dataset | None, folder: str) -> StarFTTrainer:
    args = StarFTConfig(
        output_dir=folder,
        regularizer=regularizer,
        reg_weight=setting.reg_weight,
        reg_schedule="constant",
        reference_cache_dir=folder,
        learning_rate=setting.learning_rate,
        max_steps=setting.steps,
        warmup_steps=0,
        max_grad_norm=0,
        per_device_train_batch_size=setting.batch_size,
        per_device_eval_batch_size=256,
        caption_template=CAPTION_TEMPLATE,
        group_column="group",
        crop_scale=None,
        seed=seed,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = StarFTTrainer(
        model=_load_model(setting.model),
        args=args,
        train_dataset=train,
        processing_class=AutoProcessor.from_pretrained(setting.model, local_files_only=True),
        spuriosity=list(POOLS[setting.pool]),
    )
    # With its bars switched off Trainer prints every metric; the demo's own display stands for them.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _score(trainer: StarFTTrainer, setting: Setting, method: str, seed: int, *, interpolated: bool = False) -> Score:
    scored = make_split(setting.split, seed=_SCORING_SEED)  # type: ignore[arg-type]
    held_out = make_split("held_out", seed=_SCORING_SEED)
    metrics = trainer.evaluate({"scored": scored, "held_out": held_out})
    groups = sorted(set(scored["group"]))
    return Score(
        method=method,
        seed=seed,
        interpolated=interpolated,
        average=metrics["eval_scored_accuracy"],
        worst_group=metrics["eval_scored_worst_group_accuracy"],
        held_out=metrics["eval_held_out_accuracy"],
        groups={group: metrics[f"eval_scored_accuracy_{group}"] for group in groups},
    )
