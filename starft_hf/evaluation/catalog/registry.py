"""Benchmarks by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from starft_hf.evaluation.catalog import groups, imagenet, wilds
from starft_hf.evaluation.catalog.entry import BenchmarkEntry
from starft_hf.utils.names import unknown_name


ENTRIES = {entry.name: entry for entry in (*imagenet.ENTRIES, *groups.ENTRIES, *wilds.ENTRIES)}


def benchmark_names() -> list[str]:
    """What `load_benchmark` takes."""
    return list(ENTRIES)


def load_benchmark(
    name: str, *, classes: Any = None, group_names: Mapping[str, Sequence[str]] | None = None
) -> BenchmarkEntry:
    """A benchmark of the catalogue. Nothing is downloaded before its `load` or `evaluate`.

    Args:
        name: one of `benchmark_names()`.
        classes: its classes, where this package does not have them; the entry's notes say what it takes.
        group_names: for group columns of indices the names of the values, where this package does not have them.

    Raises:
        ValueError: if the name or a group column is not known, or the classes do not fit.
    """
    if name not in ENTRIES:
        raise ValueError(unknown_name("benchmark", name, ENTRIES))
    entry = ENTRIES[name]
    if classes is not None:
        entry = entry.with_classes(classes)
    for column, names in (group_names or {}).items():
        entry = entry.with_group_names(column, names)
    return entry
