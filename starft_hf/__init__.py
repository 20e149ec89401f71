"""Robust fine-tuning of CLIP-like models with StarFT, inside the Hugging Face ecosystem."""

import importlib
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

# Names load on first use, so that `import starft_hf` and `starft --help` do not pay for torch.
_EXPORTS = {
    "CheckpointError": "starft_hf.checkpoint_files",
    "ExponentialAverageCallback": "starft_hf.averaging",
    "RobustnessReport": "starft_hf.report",
    "Run": "starft_hf.report",
    "StarFTConfig": "starft_hf.configuration",
    "StarFTTrainer": "starft_hf.trainer",
    "SpuriosityPool": "starft_hf.spuriosity",
    "TrainingInterrupted": "starft_hf.interruption",
    "alignment_loss": "starft_hf.objectives",
    "compare": "starft_hf.comparison",
    "contrastive_loss": "starft_hf.objectives",
    "discover_spuriosity": "starft_hf.spuriosity.discovery",
    "evaluate_zero_shot": "starft_hf.evaluation",
    "generate_pool": "starft_hf.spuriosity.generation",
    "greedy_soup": "starft_hf.soups",
    "interpolate": "starft_hf.weights",
    "load": "starft_hf.classifier",
    "interpolate_checkpoints": "starft_hf.soups",
    "register_regularizer": "starft_hf.regularizers",
    "sweep": "starft_hf.weights",
    "uniform_soup": "starft_hf.soups",
}

__all__ = [*sorted(_EXPORTS), "__version__"]

if TYPE_CHECKING:
    from starft_hf.averaging import ExponentialAverageCallback as ExponentialAverageCallback
    from starft_hf.checkpoint_files import CheckpointError as CheckpointError
    from starft_hf.classifier import load as load
    from starft_hf.comparison import compare as compare
    from starft_hf.configuration import StarFTConfig as StarFTConfig
    from starft_hf.evaluation import evaluate_zero_shot as evaluate_zero_shot
    from starft_hf.interruption import TrainingInterrupted as TrainingInterrupted
    from starft_hf.objectives import alignment_loss as alignment_loss
    from starft_hf.objectives import contrastive_loss as contrastive_loss
    from starft_hf.regularizers import register_regularizer as register_regularizer
    from starft_hf.report import RobustnessReport as RobustnessReport
    from starft_hf.report import Run as Run
    from starft_hf.soups import greedy_soup as greedy_soup
    from starft_hf.soups import interpolate_checkpoints as interpolate_checkpoints
    from starft_hf.soups import uniform_soup as uniform_soup
    from starft_hf.spuriosity import SpuriosityPool as SpuriosityPool
    from starft_hf.spuriosity.discovery import discover_spuriosity as discover_spuriosity
    from starft_hf.spuriosity.generation import generate_pool as generate_pool
    from starft_hf.trainer import StarFTTrainer as StarFTTrainer
    from starft_hf.weights import interpolate as interpolate
    from starft_hf.weights import sweep as sweep


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
