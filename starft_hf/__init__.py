"""Robust fine-tuning of CLIP-like models with StarFT, inside the Hugging Face ecosystem."""

import importlib
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

# Names load on first use, so that `import starft_hf` and `starft --help` do not pay for torch.
_EXPORTS = {
    "CheckpointError": "starft_hf.training.checkpointing.files",
    "ExponentialAverageCallback": "starft_hf.training.averaging",
    "Regularizer": "starft_hf.objectives",
    "RegularizerInputs": "starft_hf.objectives",
    "RobustnessReport": "starft_hf.report",
    "Run": "starft_hf.report",
    "StarFTConfig": "starft_hf.training.configuration",
    "StarFTTrainer": "starft_hf.training.trainer",
    "SpuriosityPool": "starft_hf.spuriosity",
    "TrainingInterrupted": "starft_hf.training.checkpointing.interruption",
    "alignment_loss": "starft_hf.objectives",
    "audit": "starft_hf.weights.audit",
    "compare": "starft_hf.training.comparison",
    "contrastive_loss": "starft_hf.objectives",
    "discover_spuriosity": "starft_hf.spuriosity.discovery",
    "evaluate_retrieval": "starft_hf.evaluation",
    "evaluate_zero_shot": "starft_hf.evaluation",
    "export": "starft_hf.weights.export",
    "generate_pool": "starft_hf.spuriosity.generation",
    "greedy_soup": "starft_hf.weights",
    "interpolate": "starft_hf.weights",
    "load": "starft_hf.hub.classifier",
    "interpolate_checkpoints": "starft_hf.weights",
    "predict": "starft_hf.hub.prediction",
    "register_regularizer": "starft_hf.objectives",
    "repair": "starft_hf.weights.repair",
    "sweep": "starft_hf.weights",
    "tune": "starft_hf.training.tuning",
    "uniform_soup": "starft_hf.weights",
}

__all__ = [*sorted(_EXPORTS), "__version__"]

if TYPE_CHECKING:
    from starft_hf.evaluation import evaluate_retrieval as evaluate_retrieval
    from starft_hf.evaluation import evaluate_zero_shot as evaluate_zero_shot
    from starft_hf.hub.classifier import load as load
    from starft_hf.hub.prediction import predict as predict
    from starft_hf.objectives import Regularizer as Regularizer
    from starft_hf.objectives import RegularizerInputs as RegularizerInputs
    from starft_hf.objectives import alignment_loss as alignment_loss
    from starft_hf.objectives import contrastive_loss as contrastive_loss
    from starft_hf.objectives import register_regularizer as register_regularizer
    from starft_hf.report import RobustnessReport as RobustnessReport
    from starft_hf.report import Run as Run
    from starft_hf.spuriosity import SpuriosityPool as SpuriosityPool
    from starft_hf.spuriosity.discovery import discover_spuriosity as discover_spuriosity
    from starft_hf.spuriosity.generation import generate_pool as generate_pool
    from starft_hf.training.averaging import ExponentialAverageCallback as ExponentialAverageCallback
    from starft_hf.training.checkpointing.files import CheckpointError as CheckpointError
    from starft_hf.training.checkpointing.interruption import TrainingInterrupted as TrainingInterrupted
    from starft_hf.training.comparison import compare as compare
    from starft_hf.training.configuration import StarFTConfig as StarFTConfig
    from starft_hf.training.trainer import StarFTTrainer as StarFTTrainer
    from starft_hf.training.tuning import tune as tune
    from starft_hf.weights import greedy_soup as greedy_soup
    from starft_hf.weights import interpolate as interpolate
    from starft_hf.weights import interpolate_checkpoints as interpolate_checkpoints
    from starft_hf.weights import sweep as sweep
    from starft_hf.weights import uniform_soup as uniform_soup
    from starft_hf.weights.audit import audit as audit
    from starft_hf.weights.export import export as export
    from starft_hf.weights.repair import repair as repair


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
