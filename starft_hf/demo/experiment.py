"""The demo's comparison, through the public `compare`."""

import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset

from starft_hf import RobustnessReport, StarFTConfig, compare
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, CAPTION_TEMPLATE, UNRELATED_TEMPLATES, make_split
from starft_hf.training.methods import ZERO_SHOT
from starft_hf.utils.names import unknown_name


METHODS = ("FLYP", "kl", "star")

POOLS = {"background": BACKGROUND_TEMPLATES, "unrelated": UNRELATED_TEMPLATES, "plain": ("{}.",)}

# Evaluated beside the split of a setting: the classes that fine-tuning never sees.
HELD_OUT = "held-out classes"

# Of the splits that every run is evaluated on, whatever its own seed.
_SCORING_SEED = 1000


@dataclass(frozen=True)
class Setting:
    """The settings that the runs of a demo share.

    `correlation` is the fraction of the training images of a class on its home background, and `alpha` the weight of
    the fine-tuned model in interpolations. The weight of the regularizer was chosen on the validation split.
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


def run_settings(setting: Setting, folder: str, **more: Any) -> StarFTConfig:
    """The settings of a run that writes to `folder` only; `more` adds to them and takes precedence."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "reg_weight": setting.reg_weight,
        "reg_schedule": "constant",
        "reference_cache_dir": folder,
        "learning_rate": setting.learning_rate,
        "max_steps": setting.steps,
        "warmup_steps": 0,
        "max_grad_norm": 0,
        "per_device_train_batch_size": setting.batch_size,
        "per_device_eval_batch_size": 256,
        "caption_template": CAPTION_TEMPLATE,
        "group_column": "group",
        "crop_scale": None,
        "use_cpu": True,
        "report_to": "none",
    }
    return StarFTConfig(**settings | more)


def run_experiment(setting: Setting, seeds: int, processes: int = 2) -> RobustnessReport:
    """Compare the zero-shot model and every method over several seeds, each with its own training images."""
    with tempfile.TemporaryDirectory() as folder:
        return compare(
            setting.model,
            run_settings(setting, folder, logging_steps=5),
            partial(_train_split, setting.correlation),
            {
                setting.split: make_split(setting.split, seed=_SCORING_SEED),  # type: ignore[arg-type]
                HELD_OUT: make_split("held_out", seed=_SCORING_SEED),
            },
            methods=(ZERO_SHOT, *METHODS),
            seeds=range(seeds),
            alpha=setting.alpha,
            spuriosity=list(POOLS[setting.pool]),
            processes=processes,
        )


def _train_split(correlation: float, seed: int) -> Dataset:
    return make_split("train", seed=seed, correlation=correlation)
