"""A fine-tuned model and the labeled images that it is repaired or audited by, checked before the model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starft_hf.data.columns import ColumnSettings, ImageColumns
from starft_hf.data.source import is_iterable
from starft_hf.hub.record import MULTI_LABEL
from starft_hf.spuriosity.auto import Spuriosity
from starft_hf.weights.repair.embedded import Ints
from starft_hf.weights.repair.embedding import ImageReading, targets
from starft_hf.weights.repair.subject import Described, Model, Subject, columns_for, describe, load_subject


@dataclass(frozen=True)
class LabeledImages:
    """What is known of a model before it is loaded, and labeled images with the columns that they are read by."""

    known: Described
    dataset: Any
    columns: ImageColumns
    reading: ImageReading

    @classmethod
    def of(
        cls,
        model: Model,
        dataset: Any,
        asked: ColumnSettings,
        reading: ImageReading,
        *,
        templates: Sequence[str] | str | None,
        spuriosity: Spuriosity | None,
        trust_remote_code: bool,
    ) -> "LabeledImages":
        """The images of `dataset` for `model`.

        Raises:
            FileNotFoundError: if there is no such model.
            ValueError: if rows of the dataset cannot be read by index, its columns do not fit the model, or templates
                or the pool are none.
        """
        check_validation_set(dataset)
        reading.image_cache_of(dataset)
        known = describe(model, templates, spuriosity, trust_remote_code)
        if known.record is not None and known.record.multi_label:
            raise ValueError(
                f"{str(model)!r} was trained with base_loss={MULTI_LABEL!r}; repair and audit are for images of one "
                "class each. `starft evaluate` measures this model, and `starft predict` or load() names classes"
            )
        return cls(known, dataset, columns_for(known, dataset, asked), reading)

    def targets(self) -> tuple[Ints, list[str]]:
        """The class index `(N,)` and the name of the group of every row."""
        return targets(self.dataset, self.columns)

    def load(self, processor: Any, start: Model | None) -> Subject:
        """The model, and its start if that is known."""
        return load_subject(self.known, processor, start, self.columns.class_names or ())


def check_validation_set(dataset: Any, what: str = "dataset") -> None:
    """Raise ValueError if `dataset`, called `what`, is not one whose rows can be read by index."""
    if dataset is None or isinstance(dataset, Mapping) or is_iterable(dataset):
        raise ValueError(
            f"{what} is a {type(dataset).__name__}; pass a validation split whose rows can be read by index, with "
            "images that the model was not trained on"
        )
