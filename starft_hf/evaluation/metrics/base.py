"""What the metrics have in common as classes of the `evaluate` library."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

import datasets
import evaluate

from starft_hf.evaluation.metrics import functions


CLASS_COLUMNS = {"predictions", "references"}


class ArrayMetric(evaluate.Metric, ABC):
    """A metric over columns of one value or one row of scores per sample.

    Columns given to `compute` at once go straight to the metric's function. Only what `add` and `add_batch` collect,
    or several processes, passes through the Arrow files of `evaluate`, value by value.

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

    def compute(self, **inputs: Any) -> dict[str, Any] | None:
        """The metric of everything added so far and of the columns given here.

        Returns:
            The results by name; None in processes other than the first.

        Raises:
            ValueError: if a column is missing or does not fit.
        """
        if any(inputs.get(name) is not None for name in self._feature_names()):
            self._check_names(inputs)
            if self.writer is None and self.num_process == 1:
                return self._compute(**inputs)
        return super().compute(**inputs)

    def add_batch(self, **columns: Any) -> None:
        """Add rows of every column; no rows are fine.

        Raises:
            ValueError: if a column is missing or does not fit.
        """
        self._check_names(columns)
        if functions.check_rows(**columns):
            # The encoding of `evaluate` would cut 0.9 down to class 0.
            for name in CLASS_COLUMNS & columns.keys():
                functions.class_indices(name, columns[name])
            try:
                super().add_batch(**columns)
            except ValueError as error:
                raise ValueError(
                    f"a batch does not fit {self.name} or its first batch ({error}); pass the columns with the same "
                    "types in every batch"
                ) from error

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one row.

        Raises:
            ValueError: if a value is missing or does not fit.
        """
        row = {"predictions": prediction, "references": reference, **columns}
        for name in CLASS_COLUMNS & set(self._feature_names()):
            functions.class_indices(name, [row[name]])
        super().add(prediction=prediction, reference=reference, **columns)

    def _check_names(self, columns: dict[str, Any]) -> None:
        names = self._feature_names()
        missing = [name for name in names if columns.get(name) is None]
        if missing:
            raise ValueError(f"{self.name} needs {names}, one value per row in each; {missing} did not come")
