"""The figures of a report: means and standard deviations over seeds, by dataset and model."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from starft_hf.report.data import Run


# Larger numbers of groups, such as the classes of ImageNet, are in the JSON file only.
MAX_GROUPS = 12

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Summary:
    """A measure over seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation over the seeds; None with one seed.
    """

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Summary":
        """The summary of one value per seed."""
        values = [float(value) for value in values]
        # statistics.stdev fails on the NaN of diverged runs; plain arithmetic propagates it.
        mean = sum(values) / len(values)
        if len(values) == 1:
            return cls(mean)
        return cls(mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


@dataclass(frozen=True)
class Entry:
    """A model: the runs that differ only in their seeds; `number` is its method's, 0 for the baseline."""

    number: int
    method: str
    interpolated: float | None
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """The name in tables and plots."""
        return self.method if self.interpolated is None else f"{self.method} + WiSE-FT {self.interpolated:g}"

    @property
    def is_baseline(self) -> bool:
        """Whether the others are compared with it."""
        return self.number == 0 and self.interpolated is None


@dataclass(frozen=True)
class Row:
    """A model on a dataset. All measures are fractions from 0 to 1, or differences of fractions.

    Attributes:
        dataset: name of the dataset.
        method: name of the method.
        interpolated: alpha of the fine-tuned weights in an interpolation; None without one.
        seeds: seeds of the runs.
        average: accuracy.
        worst_group: accuracy of the group with the lowest one, found for each seed separately.
        gap: average minus worst group.
        ece: expected calibration error.
        average_change: average minus that of the baseline; None for the baseline, or without one.
        worst_group_change: worst group minus that of the baseline.
        groups: accuracy of every group, by name.
        worst_group_name: the group that is the worst one for most seeds.
        label: name of the model, with the interpolation.
    """

    dataset: str
    method: str
    interpolated: float | None
    seeds: tuple[int, ...]
    average: Summary
    worst_group: Summary
    gap: Summary
    ece: Summary
    average_change: Summary | None
    worst_group_change: Summary | None
    groups: Mapping[str, Summary]
    worst_group_name: str
    label: str


@dataclass(frozen=True)
class Section:
    """The part of a report about one dataset: models, the baseline first, and their rows in the same order."""

    dataset: str
    entries: Sequence[Entry]
    rows: Sequence[Row]

    @property
    def reference(self) -> Row | None:
        """The row of the baseline; None without one."""
        return self.rows[0] if self.entries[0].is_baseline else None

    @property
    def sizes(self) -> Mapping[str, int]:
        """Rows of the dataset in every group."""
        return self.entries[0].runs[0].results[self.dataset].sizes

    @cached_property
    def groups(self) -> list[str]:
        """The groups that figures and tables show: all, or the hardest ones."""
        groups = self.rows[0].groups
        hardest = sorted(groups, key=lambda group: min(row.groups[group].mean for row in self.rows))[:MAX_GROUPS]
        return [group for group in groups if group in hardest]

    @property
    def cut(self) -> str:
        """The note on groups that are not shown; empty if all are."""
        shown, all_groups = len(self.groups), len(self.rows[0].groups)
        return "" if shown == all_groups else f"The {shown} groups of {all_groups} that are hardest for some model."

    @cached_property
    def trained(self) -> list[tuple[Entry, Row]]:
        """The models as trained, with their rows; interpolations only of methods that have nothing else."""
        return trained_of(self.entries, self.rows)


def trained_of(entries: Sequence[Entry], rows: Sequence[RowT]) -> list[tuple[Entry, RowT]]:
    """The models as trained, with their rows; interpolations only of methods that have nothing else."""
    trained = {entry.method for entry in entries if entry.interpolated is None}
    models = zip(entries, rows, strict=True)
    return [pair for pair in models if pair[0].interpolated is None or pair[0].method not in trained]


def entries_of(runs: Sequence[Run], baseline: str) -> list[Entry]:
    """The models among `runs`: the baseline first, then methods in order, interpolations after their method."""
    methods = sorted(dict.fromkeys(run.method for run in runs), key=lambda method: method != baseline)
    entries = []
    for number, method in enumerate(methods, start=int(methods[0] != baseline)):
        same = sorted((run for run in runs if run.method == method), key=lambda run: run.seed)
        for alpha in sorted({run.interpolated for run in same}, key=lambda alpha: -1 if alpha is None else alpha):
            entries.append(Entry(number, method, alpha, tuple(run for run in same if run.interpolated == alpha)))
    return entries


def sections_of(entries: Sequence[Entry]) -> list[Section]:
    """A section per dataset whose images were classified, with a row per model."""
    return [
        Section(dataset, entries, [_row(dataset, entry, entries[0]) for entry in entries])
        for dataset in entries[0].runs[0].classified
    ]


def _row(dataset: str, entry: Entry, first: Entry) -> Row:
    results = [run.classified[dataset] for run in entry.runs]
    return Row(
        dataset=dataset,
        method=entry.method,
        interpolated=entry.interpolated,
        seeds=tuple(run.seed for run in entry.runs),
        average=Summary.of(result.accuracy for result in results),
        worst_group=Summary.of(result.worst_group_accuracy for result in results),
        gap=Summary.of(result.gap for result in results),
        ece=Summary.of(result.ece for result in results),
        average_change=change_from(dataset, entry, first, "accuracy"),
        worst_group_change=change_from(dataset, entry, first, "worst_group_accuracy"),
        groups={
            name: Summary.of(result.group_accuracies[name] for result in results)
            for name in results[0].group_accuracies
        },
        worst_group_name=Counter(result.worst_group for result in results).most_common(1)[0][0],
        label=entry.label,
    )


def change_from(dataset: str, entry: Entry, first: Entry, measure: str) -> Summary | None:
    """The change from the baseline of the same seed, or from its mean if a seed is missing there."""
    if not first.is_baseline or entry is first:
        return None
    before = {run.seed: getattr(run.results[dataset], measure) for run in first.runs}
    if not all(run.seed in before for run in entry.runs):
        before = dict.fromkeys((run.seed for run in entry.runs), statistics.fmean(before.values()))
    return Summary.of(getattr(run.results[dataset], measure) - before[run.seed] for run in entry.runs)
