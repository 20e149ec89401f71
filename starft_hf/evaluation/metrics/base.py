"""What the metrics have in common as classes of the `evaluate` library."""

import inspect
from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from starft_hf.evaluation.metrics import functions


CLASS_COLUMNS = {"predictions", "references"}

_MISFIT = "a batch does not fit {} or its first batch ({}); pass the columns with the same types in every batch"

# Numbers are kept as arrays, names as lists.
Column = NDArray[Any] | list[Any]


class ArrayMetric(evaluate.Metric, ABC):
    """A metric over columns of one value or one row of scores per sample.

    Columns go straight to the metric's function; what `add` and `add_batch` collect is kept as arrays until then. Only
    with several processes (`num_process`) it passes through the Arrow files of `evaluate`, value by value.

    A subclass describes itself by its docstring.
    """

    source: str
    """A reference in BibTeX."""

    @abstractmethod
    def _columns(self) -> datasets.Features | list[datasets.Features]:
        """What a sample consists of; several: whichever the first batch fits."""

    @abstractmethod
    def _compute(self, **inputs: Any) -> dict[str, Any]:
        """The metric of all columns, and what it was asked for."""

    def _info(self) -> evaluate.MetricInfo:
        summary, _, usage = (inspect.getdoc(type(self)) or "").partition("\n\n")
        return evaluate.MetricInfo(
            description=summary, citation=self.source, inputs_description=usage, features=self._columns()
        )

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._collected: dict[str, list[Column]] = {}

    def compute(self, **inputs: Any) -> dict[str, Any] | None:
        """The metric of everything added so far and of the columns given here. Where it fails, what was added stays.

        Returns:
            The results by name; None in processes other than the first.

        Raises:
            ValueError: if a column is missing or does not fit, or there is nothing.
        """
        names = self._feature_names()
        given = {name: value for name in names if (value := inputs.pop(name, None)) is not None}
        if given:
            self._check_names(given)
        if self.num_process > 1:
            return super().compute(**given, **inputs)
        if given and not self._collected:
            return self._compute(**given, **inputs)
        if given:
            self.add_batch(**given)
        if not self._collected:
            raise ValueError(f"nothing was added to {self.name}; pass {names} here, or call add or add_batch before")
        result = self._compute(**{name: _joined(parts) for name, parts in self._collected.items()}, **inputs)
        self._collected = {}
        return result

    def add_batch(self, **columns: Any) -> None:
        """Add rows of every column; no rows are fine.

        Raises:
            ValueError: if a column is missing or does not fit.
        """
        self._check_names(columns)
        if not functions.check_rows(**columns):
            return
        for name in CLASS_COLUMNS & columns.keys():
            functions.class_indices(name, columns[name])
        if self.num_process > 1:
            try:
                super().add_batch(**columns)
            except ValueError as error:
                raise ValueError(_MISFIT.format(self.name, error)) from error
            return
        # Copies, for the caller may fill the same arrays again.
        parts = {name: _kept(name, columns[name]) for name in self._feature_names()}
        for name, part in parts.items():
            first = self._collected[name][0] if self._collected else part
            if _kind(first) != _kind(part):
                raise ValueError(_MISFIT.format(self.name, f"{name} hold {_kind(part)} after {_kind(first)}"))
        for name, part in parts.items():
            self._collected.setdefault(name, []).append(part)

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one row.

        Raises:
            ValueError: if a value is missing or does not fit.
        """
        singular = {"predictions": prediction, "references": reference}
        row = {name: value for name, value in singular.items() if value is not None} | columns
        self.add_batch(**{name: [value] for name, value in row.items()})

    def _check_names(self, columns: dict[str, Any]) -> None:
        names = self._feature_names()
        missing = [name for name in names if columns.get(name) is None]
        if missing:
            raise ValueError(f"{self.name} needs {names}, one value per row in each; {missing} did not come")
        if unknown := [name for name in columns if name not in names]:
            raise ValueError(f"{self.name} takes {names}; what {unknown} is for is unknown to it")


def _kept(name: str, values: Any) -> Column:
    array = functions.as_array(name, values)
    if array.dtype.kind in "biuf":
        return np.array(array)
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _kind(column: Column) -> str:
    if not isinstance(column, np.ndarray):
        return "names"
    return "numbers" if column.ndim == 1 else f"rows of {column.shape[1:]} numbers"


def _joined(parts: list[Column]) -> Column:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return list(chain.from_iterable(parts))
