"""The findings of a report in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starft_hf.report.rows import Row, Section, Summary
from starft_hf.report.table import Cell
from starft_hf.utils.text import and_then, one_decimal, one_line, percent


# With more methods than these, only the best and the worst are named.
_MAX_CLAUSES = 4


@dataclass(frozen=True)
class Finding:
    """What happened on a dataset, in plain text: the changes in `lead`, their reliability in `remarks`."""

    lead: str
    remarks: str


def finding_of(section: Section) -> Finding:
    """What happened on the dataset of a section."""
    reference = section.reference
    others = [row for row in section.rows if row is not reference]
    methods = [row for row in others if row.interpolated is None] or others or list(section.rows)
    start, prefix = f"On {one_line(section.dataset)}, ", ""
    if len(methods) > _MAX_CLAUSES:
        prefix = f"the best and the worst of {len(methods)} methods: "
        methods = [max(reversed(methods), key=_worst_group), min(methods, key=_worst_group)]
    if reference is None or not others:
        lead = f"{start}{prefix}{and_then([_state(row) for row in methods])}."
    else:
        # The first clause of a change has the units.
        first = next((row for row in methods if not _is_unchanged(row)), None)
        clauses = [
            _unchanged(row, reference) if _is_unchanged(row) else _change(row, first=row is first) for row in methods
        ]
        lead = f"{start}{_state(reference)}. {prefix.capitalize()}{and_then(clauses)}."
    remarks = [_doubt(methods), _best(section.rows, reference), seeds_remark(others or section.rows)]
    return Finding(lead, " ".join(filter(None, remarks)))


def _worst_group(row: Row) -> float:
    return row.worst_group.mean


def _state(row: Row) -> str:
    worst, average = percent(row.worst_group.mean), percent(row.average.mean)
    return f"{one_line(row.label)} has {worst}% in its worst group and {average}% on average"


def _is_unchanged(row: Row) -> bool:
    changes = (row.worst_group_change, row.average_change)
    return all(change is not None and float(one_decimal(abs(change.mean))) == 0 for change in changes)


def _unchanged(row: Row, reference: Row) -> str:
    shown, start = ([percent(measure.mean) for measure in (one.worst_group, one.average)] for one in (row, reference))
    if shown == start:
        return f"{one_line(row.label)} changes neither the worst group ({shown[0]}%) nor the average ({shown[1]}%)"
    # 84.54 and 84.56 are shown as 84.5 and 84.6.
    return (
        f"{one_line(row.label)} changes the worst group (to {shown[0]}%) and the average (to {shown[1]}%) by less "
        "than 0.05 points"
    )


def _change(row: Row, *, first: bool) -> str:
    assert row.worst_group_change is not None
    assert row.average_change is not None
    changes = (row.worst_group_change, row.average_change)
    worst, average = sizes = [one_decimal(abs(change.mean)) for change in changes]
    verb, other = (verb_of(change, size) for change, size in zip(changes, sizes, strict=True))
    where, overall = (" points in the worst group", " on average") if first else ("", "")
    return (
        f"{one_line(row.label)} {verb} {worst}{where} (to {percent(row.worst_group.mean)}%) and "
        f"{'' if other == verb else f'{other} '}{average}{overall} (to {percent(row.average.mean)}%)"
    )


def verb_of(change: Summary, size: str) -> str:
    """Whether a change, as it is shown, is a gain or a loss."""
    if float(size) == 0:
        return "changes by"
    return "gains" if change.mean > 0 else "loses"


def _doubt(rows: Sequence[Row]) -> str:
    within = [
        one_line(row.label)
        for row in rows
        if (change := row.worst_group_change) and change.deviation is not None and abs(change.mean) <= change.deviation
    ]
    if not within:
        return ""
    verb = "changes" if len(within) == 1 else "change"
    return f"{and_then(within)} {verb} the worst group by no more than one standard deviation over seeds."


def _best(rows: Sequence[Row], reference: Row | None) -> str:
    best = max(rows, key=_worst_group)
    # As in a table, where what is shown alike is level.
    level = [row for row in rows if percent(_worst_group(row)) == percent(_worst_group(best))]
    if len(rows) > 1 and reference in level:
        return f"Nothing here has a better worst group than {one_line(reference.label)}."
    if len(rows) < 3:
        return ""
    if len(level) > 1:
        names = and_then([one_line(row.label) for row in level])
        return f"The best worst groups are those of {names}, level at {percent(_worst_group(best))}%."
    return f"The best worst group is that of {one_line(best.label)}, {Cell.of(best.worst_group)}%."


def seeds_remark(rows: Sequence[Any]) -> str:
    """How many seeds the figures of these rows are means over."""
    few, many = (bound(len(row.seeds) for row in rows) for bound in (min, max))
    if many == 1:
        return "One seed each: the variation between seeds is unknown."
    return f"Means over {many if few == many else f'{few} to {many}'} seeds."
