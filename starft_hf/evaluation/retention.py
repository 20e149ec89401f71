"""Retention sets: datasets of other tasks, evaluated before and after fine-tuning to measure forgetting."""

from typing import Any

from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.data.retrieval import CAPTION_COLUMN, retrieval_columns
from starft_hf.data.source import is_iterable
from starft_hf.evaluation.evaluate import evaluate_zero_shot
from starft_hf.evaluation.results import AnyResult
from starft_hf.evaluation.retrieval import evaluate_retrieval


def named_retention_sets(datasets: Any, settings: ColumnSettings) -> dict[str, Any]:
    """The retention sets by name ("probe" for a single one), after checking their columns."""
    named = datasets if isinstance(datasets, dict) else {} if datasets is None else {"probe": datasets}
    for name, dataset in named.items():
        what = f"zero_shot_probe {name!r}"
        if is_iterable(dataset):
            raise ValueError(
                f"{what} is an iterable dataset, which cannot be split among processes; pass one that can be read by "
                "index"
            )
        if retrieval_columns(dataset, settings, what=what) is None:
            resolve_evaluation_columns(dataset, _labeled(settings), what=what)
    return named


def evaluate_retention_set(
    model: Any, processor: Any, dataset: Any, settings: ColumnSettings, templates: Any, **reading: Any
) -> AnyResult:
    """Classify the images of a retention set zero-shot, or retrieve them and their captions if it has no labels.

    Args:
        model: the dual encoder.
        processor: its processor.
        dataset: one of `named_retention_sets`.
        settings: as it was checked with.
        templates: prompts with `{}` for the class name.
        reading: further arguments of `evaluate_zero_shot` and `evaluate_retrieval`.
    """
    if retrieval_columns(dataset, settings, what="zero_shot_probe") is not None:
        reading["caption_column"] = settings.caption_column or CAPTION_COLUMN
        return evaluate_retrieval(model, processor, dataset, image_column=settings.image_column, **reading)
    reading |= {"templates": templates, "label_column": settings.label_column}
    return evaluate_zero_shot(model, processor, dataset, image_column=settings.image_column, **reading)


def _labeled(settings: ColumnSettings) -> ColumnSettings:
    """The columns that a retention set shares with the data of the run: its classes and groups are its own."""
    return ColumnSettings(settings.image_column, settings.label_column)
