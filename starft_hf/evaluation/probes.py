"""Data sets of other tasks, classified zero-shot before and after fine-tuning: what the model forgets."""

from typing import Any

from torch import nn

from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.data.source import is_stream
from starft_hf.evaluation.evaluate import evaluate_zero_shot
from starft_hf.evaluation.results import EvaluationResult


def named_probes(probes: Any, settings: ColumnSettings) -> dict[str, Any]:
    """The data sets by name; a single one is called "probe".

    Raises:
        ValueError: if one of them lacks labels or images, or is a stream.
    """
    named = probes if isinstance(probes, dict) else {} if probes is None else {"probe": probes}
    columns = ColumnSettings(settings.image_column, settings.label_column)
    for name, probe in named.items():
        if is_stream(probe):
            raise ValueError(
                f"zero_shot_probe {name!r} is a stream, which cannot be shared out and counted; pass a data set whose "
                "rows can be read by index"
            )
        resolve_evaluation_columns(probe, columns, what=f"zero_shot_probe {name!r}")
    return named


def evaluate_probes(
    model: nn.Module, processor: Any, probes: dict[str, Any], **settings: Any
) -> dict[str, EvaluationResult]:
    """How `model` does on each of them; the settings are those of `evaluate_zero_shot`."""
    return {name: evaluate_zero_shot(model, processor, dataset, **settings) for name, dataset in probes.items()}
