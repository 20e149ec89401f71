"""Metrics of classifiers as classes of the `evaluate` library.

Import the classes from here, or pass `metric_path(...)` to `evaluate.load`; both work offline.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starft_hf.utils.names import unknown_name


# Imported on first use: the trainer needs the functions next to this, but not `evaluate`.
_EXPORTS = {
    "ExpectedCalibrationError": "expected_calibration_error",
    "GroupAccuracy": "group_accuracy",
    "MacroF1": "macro_f1",
    "TopKAccuracy": "top_k_accuracy",
}

__all__ = [*sorted(_EXPORTS), "metric_path"]

if TYPE_CHECKING:
    from starft_hf.evaluation.metrics.expected_calibration_error.expected_calibration_error import (
        ExpectedCalibrationError as ExpectedCalibrationError,
    )
    from starft_hf.evaluation.metrics.group_accuracy.group_accuracy import GroupAccuracy as GroupAccuracy
    from starft_hf.evaluation.metrics.macro_f1.macro_f1 import MacroF1 as MacroF1
    from starft_hf.evaluation.metrics.top_k_accuracy.top_k_accuracy import TopKAccuracy as TopKAccuracy


def metric_path(name: str) -> str:
    """The folder of a metric of this package, for `evaluate.load`.

    Args:
        name: "expected_calibration_error", "group_accuracy", "macro_f1" or "top_k_accuracy".

    Raises:
        ValueError: if the metric is unknown.
    """
    if name not in _EXPORTS.values():
        raise ValueError(unknown_name("metric", name, sorted(_EXPORTS.values())))
    return str(Path(__file__).parent / name)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        folder = _EXPORTS[name]
        return getattr(importlib.import_module(f"{__name__}.{folder}.{folder}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
