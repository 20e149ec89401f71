"""What the metrics have in common as classes of the `evaluate` library."""

import inspect
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from starft_hf.evaluation import metric_functions
from starft_hf.evaluation.validation import as_array, check_rows, class_indices


CLASSES = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}


class ArrayMetric(evaluate.Metric):
    """A metric that keeps columns as arrays, instead of writing them to Arrow files value by value.

    With several processes (`num_process`) it does write them, because files are how the columns meet. A subclass has
    its function in metric_functions.py under its own name, and a file citation.bib next to it.
    """

    columns: datasets.Features | list[datasets.Features] = datasets.Features(CLASSES)
    """What a sample consists of; of several, the first that the first batch fits."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._collected: list[dict[str, NDArray[Any]]] = []

    def _info(self) -> evaluate.MetricInfo:
        summary, _, usage = (inspect.getdoc(type(self)) or "").partition("\n\n")
        # `evaluate.load` imports a copy of the module, without the files next to it.
        folder = Path(__file__).with_name(self._function_name)
        citation = (folder / "citation.bib").read_text(encoding="utf-8").strip()
        return evaluate.MetricInfo(summary, citation, self.columns, inputs_description=usage)

    @property
    def _function_name(self) -> str:
        # The name of the module of a metric of ours, also for classes derived from it elsewhere.
        kinds = type(self).__mro__
        return kinds[kinds.index(ArrayMetric) - 1].__module__.rpartition(".")[2]

    def _compute(self, **inputs: Any) -> dict[str, Any]:
        result = getattr(metric_functions, self._function_name)(**inputs)
        return result if isinstance(result, dict) else {self.name: result}

    def compute(self, **inputs: Any) -> dict[str, Any] | None:
        """The metric of everything added so far and of the columns given here; None in processes but the first.

        If it fails, what was added is kept.
        """
        names = self._feature_names()
        given = {name: value for name in names if (value := inputs.pop(name, None)) is not None}
        if given:
            self._check_names(given)
        if self.num_process > 1:
            return super().compute(**given, **inputs)
        if given and self._collected:
            self.add_batch(**given)
            given = {}
        if not given and not self._collected:
            raise ValueError(f"{self.name} has no rows; pass {names} here, or call add or add_batch before")
        columns = given or {name: np.concatenate([batch[name] for batch in self._collected]) for name in names}
        result = self._compute(**columns, **inputs)
        self._collected = []
        return result

    def add_batch(self, **columns: Any) -> None:
        """Add rows of every column; a batch may be empty."""
        self._check_names(columns)
        if not check_rows(**columns):
            return
        for name in CLASSES.keys() & columns.keys():
            class_indices(name, columns[name])
        if self.num_process > 1:
            super().add_batch(**columns)
            return
        batch = {name: _copied(name, column) for name, column in columns.items()}
        for name, first in (self._collected[0] if self._collected else batch).items():
            if _kind(batch[name]) != _kind(first):
                raise ValueError(
                    f"{name} of {self.name} hold {_kind(batch[name])} after {_kind(first)} in the first batch; pass "
                    "columns with the same types in every batch"
                )
        self._collected.append(batch)

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one row."""
        row = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: [value] for name, value in row.items() if value is not None})

    def _check_names(self, columns: dict[str, Any]) -> None:
        names = self._feature_names()
        if missing := [name for name in names if columns.get(name) is None]:
            raise ValueError(f"{self.name} needs {names}, one value per row in each; {missing} are missing")
        if unknown := [name for name in columns if name not in names]:
            raise ValueError(f"{self.name} takes {names}; remove the unknown {unknown}")


def _copied(name: str, values: Any) -> NDArray[Any]:
    if name == "groups":
        # Objects, because numpy would turn the integers among strings into strings.
        return np.array(values.tolist() if hasattr(values, "tolist") else list(values), dtype=object)
    # A copy, because the caller may fill the same array again.
    return np.array(as_array(name, values))


def _kind(column: NDArray[Any]) -> str:
    if isinstance(column[0], str):
        return "strings"
    return f"rows of shape {column.shape[1:]}" if column.ndim > 1 else "numbers"
