"""Retention sets: datasets of other tasks, classified zero-shot before and after fine-tuning to measure forgetting."""

from typing import Any

from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.data.source import is_iterable


def named_retention_sets(datasets: Any, settings: ColumnSettings) -> dict[str, Any]:
    """The retention sets by name ("probe" for a single one), after checking their columns."""
    named = datasets if isinstance(datasets, dict) else {} if datasets is None else {"probe": datasets}
    columns = ColumnSettings(settings.image_column, settings.label_column)
    for name, dataset in named.items():
        if is_iterable(dataset):
            raise ValueError(
                f"zero_shot_probe {name!r} is an iterable dataset, which cannot be split among processes; pass one "
                "that can be read by index"
            )
        resolve_evaluation_columns(dataset, columns, what=f"zero_shot_probe {name!r}")
    return named
