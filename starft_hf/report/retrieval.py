"""The part of a report about datasets for retrieval: rows, one table and sentences."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starft_hf.evaluation.results import MEAN_RECALL, RECALLS, RECALLS_AT_1, retrieval_results
from starft_hf.report.rows import Entry, Summary, change_from, trained_of
from starft_hf.report.table import DATASET, MODEL, SEEDS, Column
from starft_hf.report.words import Finding, seeds_remark, verb_of
from starft_hf.utils.text import and_then, one_decimal, one_line, percent, points


RECALL_NOTE = (
    "R@k: the share of images with one of their captions among the k most similar ones, and of captions with an image "
    "of theirs."
)


@dataclass(frozen=True)
class RetrievalRow:
    """A model on a dataset for retrieval. All measures are fractions from 0 to 1, or differences of fractions.

    Attributes:
        dataset: name of the dataset.
        method: name of the method.
        interpolated: alpha of the fine-tuned weights in an interpolation; None without one.
        seeds: seeds of the runs.
        recalls: by the names in `RetrievalResult`, with their mean, "mean_recall".
        change: the mean recall minus that of the baseline; None for the baseline, or without one.
        label: name of the model, with the interpolation.
    """

    dataset: str
    method: str
    interpolated: float | None
    seeds: tuple[int, ...]
    recalls: Mapping[str, Summary]
    change: Summary | None
    label: str


@dataclass(frozen=True)
class RetrievalSection:
    """The part of a report about one dataset: models, the baseline first, and their rows in the same order."""

    dataset: str
    entries: Sequence[Entry]
    rows: Sequence[RetrievalRow]

    @property
    def trained(self) -> list[tuple[Entry, RetrievalRow]]:
        """The models as trained, with their rows; interpolations only of methods that have nothing else."""
        return trained_of(self.entries, self.rows)


def retrieval_sections_of(entries: Sequence[Entry]) -> list[RetrievalSection]:
    """A section per dataset for retrieval, with a row per model."""
    return [
        RetrievalSection(dataset, entries, [_row(dataset, entry, entries[0]) for entry in entries])
        for dataset in retrieval_results(entries[0].runs[0].results)
    ]


def retrieval_columns_of(sections: Sequence[RetrievalSection], names: Iterable[str] = RECALLS) -> list[Column]:
    """The columns of the table, with these recalls; the change only if there is a baseline to compare with."""
    columns = [DATASET, MODEL, SEEDS]
    columns += [Column(_heading(name), _recall(name), best=max) for name in (*names, MEAN_RECALL)]
    first = sections[0].entries[0]
    if first.is_baseline and len(sections[0].entries) > 1:
        columns.append(Column(f"mean, change to {first.label}", lambda row: row.change, points))
    return columns


def retrieval_finding(section: RetrievalSection) -> Finding:
    """What happened on the dataset of a section."""
    first, *others = section.rows
    start = f"On {one_line(section.dataset)}, images and captions are retrieved: "
    if not section.entries[0].is_baseline or not others:
        lead = f"{start}{and_then([_state(row) for row in section.rows])}."
    else:
        changes = [_change(row) for row in others if row.interpolated is None] or [_change(row) for row in others]
        lead = f"{start}{_state(first)}. {and_then(changes)}."
    return Finding(lead, seeds_remark(others or section.rows))


def _row(dataset: str, entry: Entry, first: Entry) -> RetrievalRow:
    results: list[Any] = [run.results[dataset] for run in entry.runs]
    return RetrievalRow(
        dataset=dataset,
        method=entry.method,
        interpolated=entry.interpolated,
        seeds=tuple(run.seed for run in entry.runs),
        recalls={name: Summary.of(getattr(result, name) for result in results) for name in (*RECALLS, MEAN_RECALL)},
        change=change_from(dataset, entry, first, MEAN_RECALL),
        label=entry.label,
    )


def _recall(name: str) -> Any:
    return lambda row: row.recalls[name]


def _heading(name: str) -> str:
    """`image to text R@1`, as the literature has it."""
    return "mean recall" if name == MEAN_RECALL else name.replace("_recall_at_", " R@").replace("_", " ")


def _state(row: RetrievalRow) -> str:
    images, captions = (percent(row.recalls[name].mean) for name in RECALLS_AT_1)
    return (
        f"{one_line(row.label)} has a mean recall of {percent(row.recalls[MEAN_RECALL].mean)}%, with a right caption "
        f"first for {images}% of the images and a right image first for {captions}% of the captions"
    )


def _change(row: RetrievalRow) -> str:
    assert row.change is not None
    size = one_decimal(abs(row.change.mean))
    verb, mean = verb_of(row.change, size), percent(row.recalls[MEAN_RECALL].mean)
    return f"{one_line(row.label)} {verb} {size} points of mean recall (to {mean}%)"
