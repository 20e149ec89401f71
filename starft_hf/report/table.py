"""The numbers of a report: means and standard deviations over seeds, by model and data set."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from starft_hf.evaluation.results import EvaluationResult
from starft_hf.report.data import Run
from starft_hf.utils.text import percent, points


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
        # statistics.stdev fails on NaN, which diverged runs leave; arithmetic carries it on.
        mean = sum(values) / len(values)
        if len(values) == 1:
            return cls(mean)
        return cls(mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


@dataclass(frozen=True)
class Entry:
    """The runs that differ in nothing but their seeds: one model in tables and plots."""

    method: str
    interpolated: float | None
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """The name in tables and plots."""
        return self.method if self.interpolated is None else f"{self.method} + WiSE-FT {self.interpolated:g}"


@dataclass(frozen=True)
class Row:
    """A model on a data set. Everything measured is a share or a difference of shares.

    Attributes:
        dataset: name of the data set.
        method: name of the method.
        interpolated: share of the fine-tuned weights in an interpolation; None without one.
        seeds: of the runs.
        average: accuracy.
        worst_group: accuracy of the group where it is lowest, found for every seed by itself.
        gap: average less worst group.
        ece: expected calibration error.
        average_change: average less that of the baseline; None for the baseline, or without one.
        worst_group_change: worst group less that of the baseline.
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


def entries_of(runs: Sequence[Run], baseline: str) -> list[Entry]:
    """The models among `runs`: the baseline first, then methods as they come, interpolations behind their method."""
    methods = sorted(dict.fromkeys(run.method for run in runs), key=lambda method: method != baseline)
    entries = []
    for method in methods:
        of_method = [run for run in runs if run.method == method]
        shares = sorted({run.interpolated for run in of_method}, key=lambda share: -1 if share is None else share)
        for share in shares:
            same = [run for run in of_method if run.interpolated == share]
            entries.append(Entry(method, share, tuple(sorted(same, key=lambda run: run.seed))))
    return entries


def rows_of(entries: Sequence[Entry], baseline: str) -> list[Row]:
    """The table: for every data set a row per model."""
    reference = next((entry for entry in entries if (entry.method, entry.interpolated) == (baseline, None)), None)
    return [_row(dataset, entry, reference) for dataset in entries[0].runs[0].results for entry in entries]


def _row(dataset: str, entry: Entry, reference: Entry | None) -> Row:
    results = [run.results[dataset] for run in entry.runs]
    groups = entry.runs[0].results[dataset].group_accuracies
    return Row(
        dataset=dataset,
        method=entry.method,
        interpolated=entry.interpolated,
        seeds=tuple(run.seed for run in entry.runs),
        average=Summary.of(result.accuracy for result in results),
        worst_group=Summary.of(result.worst_group_accuracy for result in results),
        gap=Summary.of(result.gap for result in results),
        ece=Summary.of(result.ece for result in results),
        average_change=_change(dataset, entry, reference, lambda result: result.accuracy),
        worst_group_change=_change(dataset, entry, reference, lambda result: result.worst_group_accuracy),
        groups={group: Summary.of(result.group_accuracies[group] for result in results) for group in groups},
        worst_group_name=Counter(result.worst_group for result in results).most_common(1)[0][0],
        label=entry.label,
    )


def _change(
    dataset: str, entry: Entry, reference: Entry | None, measure: Callable[[EvaluationResult], float]
) -> Summary | None:
    """The change against the baseline of the same seed, or against its mean where it has not all of the seeds."""
    if reference is None or entry is reference:
        return None
    before = {run.seed: measure(run.results[dataset]) for run in reference.runs}
    if not all(run.seed in before for run in entry.runs):
        mean = statistics.fmean(before.values())
        before = {run.seed: mean for run in entry.runs}
    return Summary.of(measure(run.results[dataset]) - before[run.seed] for run in entry.runs)


# More groups than these, such as the classes of ImageNet, are left to the JSON file.
MAX_GROUPS = 12


def shown_groups(rows: Sequence[Row]) -> list[str]:
    """The groups of a data set that figures and tables show: all, or those that some model finds the hardest."""
    groups = list(rows[0].groups)
    if len(groups) <= MAX_GROUPS:
        return groups
    hardest = sorted(groups, key=lambda group: min(row.groups[group].mean for row in rows))[:MAX_GROUPS]
    return [group for group in groups if group in hardest]


def without_interpolations(entries: Sequence[Entry]) -> list[Entry]:
    """The models as they were trained; interpolations only of methods that have nothing else."""
    trained = {entry.method for entry in entries if entry.interpolated is None}
    return [entry for entry in entries if entry.interpolated is None or entry.method not in trained]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: its head.
        measure: what it shows of a row.
        signed: whether values are changes.
        best: which of the values of a data set is the best one, `max` or `min`; None where none is.
    """

    title: str
    measure: Callable[[Row], Summary | None]
    signed: bool = False
    best: Callable[[list[float]], float] | None = None

    def cell(self, row: Row) -> tuple[str, str | None]:
        """The mean and the deviation of a row, in percent or points; ("", None) where there is nothing to show."""
        return cell(self.measure(row), signed=self.signed)

    def is_best(self, row: Row, rows: Sequence[Row]) -> bool:
        """Whether no row of the data set shows a better figure, among at least two that do not all show the same."""
        if self.best is None:
            return False
        # Figures that look alike are alike: which of two 79.1 is in front says nothing.
        shown = {self.cell(other)[0] for other in rows} - {"", "nan"}
        own = self.cell(row)[0]
        return len(shown) > 1 and own in shown and float(own) == self.best([float(text) for text in shown])


def cell(summary: Summary | None, *, signed: bool = False) -> tuple[str, str | None]:
    """The mean and the deviation of a summary, in percent or points; ("", None) for None."""
    if summary is None:
        return "", None
    show = points if signed else percent
    return show(summary.mean), None if summary.deviation is None else percent(summary.deviation)


def columns_of(rows: Sequence[Row], baseline: str) -> list[Column]:
    """The columns for `rows`; changes only where there is a baseline to compare with."""
    columns = [
        Column("average", lambda row: row.average, best=max),
        Column("worst group", lambda row: row.worst_group, best=max),
        Column("gap", lambda row: row.gap),
        Column("ECE", lambda row: row.ece, best=min),
    ]
    if any(row.average_change for row in rows):
        columns += [
            Column(f"average, change to {baseline}", lambda row: row.average_change, signed=True),
            Column(f"worst group, change to {baseline}", lambda row: row.worst_group_change, signed=True),
        ]
    return columns
