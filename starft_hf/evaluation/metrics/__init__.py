"""Metrics of classifiers as classes of the `evaluate` library.

Import the classes from here, or pass `metric_path(...)` to `evaluate.load`; both work offline.
"""

from pathlib import Path

from starft_hf.evaluation.metrics.expected_calibration_error.expected_calibration_error import ExpectedCalibrationError
from starft_hf.evaluation.metrics.group_accuracy.group_accuracy import GroupAccuracy
from starft_hf.evaluation.metrics.macro_f1.macro_f1 import MacroF1
from starft_hf.evaluation.metrics.top_k_accuracy.top_k_accuracy import TopKAccuracy
from starft_hf.utils.names import unknown_name


__all__ = ["ExpectedCalibrationError", "GroupAccuracy", "MacroF1", "TopKAccuracy", "metric_path"]


def metric_path(name: str) -> str:
    """The folder of a metric such as "macro_f1", for `evaluate.load`; a ValueError if there is no such metric."""
    folders = {path.parent.name: path.parent for path in sorted(Path(__file__).parent.glob("*/citation.bib"))}
    if name not in folders:
        raise ValueError(unknown_name("metric", name, folders))
    return str(folders[name])
