"""Metrics of classifiers as classes of the `evaluate` library.

Import the classes from here, or give `metric_path(...)` to `evaluate.load`; both work offline.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any


# Names load on first use: counting in the trainer needs the functions next to this, and not `evaluate`.
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
    """The folder that `evaluate.load` takes for a metric of this package.

    Args:
        name: "expected_calibration_error", "group_accuracy", "macro_f1" or "top_k_accuracy".

    Raises:
        ValueError: if there is no such metric.
    """
    names = sorted(_EXPORTS.values())
    if name not in names:
        raise ValueError(f"there is no metric {name!r} in this package; take one of {names}")
    return str(Path(__file__).parent / name)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        folder = _EXPORTS[name]
        return getattr(importlib.import_module(f"{__name__}.{folder}.{folder}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
