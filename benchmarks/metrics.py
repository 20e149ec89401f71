"""CPU seconds of the metrics over a million predictions.

Each metric is timed three ways: its function, its class given all columns at once, and its class given them in
batches.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from starft_hf.evaluation import metric_functions as functions
from starft_hf.evaluation import metrics


ROWS = 1_000_000
NUM_CLASSES = 100
BATCH_SIZE = 1000

# Class, function, columns.
METRICS: tuple[tuple[str, Callable[..., Any], tuple[str, ...]], ...] = (
    ("GroupAccuracy", functions.group_accuracy, ("predictions", "references", "groups")),
    ("ExpectedCalibrationError", functions.expected_calibration_error, ("confidences", "predictions", "references")),
    ("TopKAccuracy", functions.top_k_accuracy, ("scores", "references")),
    ("MacroF1", functions.macro_f1, ("predictions", "references")),
)


def make_columns(rows: int = ROWS) -> dict[str, np.ndarray]:
    """Predictions at random, of 100 classes in four groups."""
    rng = np.random.default_rng(0)
    names = [f"{bird} on {place}" for bird in ("landbird", "waterbird") for place in ("land", "water")]
    return {
        "predictions": rng.integers(NUM_CLASSES, size=rows),
        "references": rng.integers(NUM_CLASSES, size=rows),
        "groups": np.array(names)[rng.integers(len(names), size=rows)],
        "confidences": rng.random(rows),
        "scores": rng.random((rows, NUM_CLASSES), dtype=np.float32),
    }


def median_seconds(task: Callable[[], Any], repetitions: int = 3) -> float:
    """Median CPU seconds of `task`, which what else the machine does changes little."""
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        task()
        times.append(time.process_time() - start)
    return statistics.median(times)


def in_batches(metric: Any, columns: dict[str, np.ndarray]) -> Any:
    """The metric of columns that come batch by batch."""
    for start in range(0, len(columns["references"]), BATCH_SIZE):
        metric.add_batch(**{name: column[start : start + BATCH_SIZE] for name, column in columns.items()})
    return metric.compute()


def measure_metrics(folder: str) -> dict[str, dict[str, float]]:
    """CPU seconds of every metric, three ways; `folder` is for the files of `evaluate`."""
    everything = make_columns()
    found: dict[str, dict[str, float]] = {}
    for name, function, names in METRICS:
        columns = {column: everything[column] for column in names}
        metric = getattr(metrics, name)(cache_dir=folder)
        ways = {
            "function": partial(function, **columns),
            "class at once": partial(metric.compute, **columns),
            "class in batches": partial(in_batches, metric, columns),
        }
        found[name] = {way: median_seconds(task) for way, task in ways.items()}
    return found
