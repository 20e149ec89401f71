"""What happened, in sentences made of the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from starft_hf.report.table import Row, Summary, cell
from starft_hf.utils.text import and_then, one_line, percent


# Of more methods than these only the two ends are named; the table has all.
_CLAUSES = 4


@dataclass(frozen=True)
class Finding:
    """What happened on a data set, in plain text.

    Attributes:
        lead: worst group and average of the methods, against the baseline where there is one.
        remarks: how far that can be trusted, and which model has the best worst group.
    """

    lead: str
    remarks: str


def findings_of(rows: Sequence[Row], baseline: str) -> list[Finding]:
    """What happened on every data set.

    Args:
        rows: the table.
        baseline: name of the method that the others are compared with.
    """
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    return [_finding([row for row in rows if row.dataset == dataset], baseline) for dataset in datasets]


def _finding(rows: Sequence[Row], baseline: str) -> Finding:
    reference = next((row for row in rows if (row.method, row.interpolated) == (baseline, None)), None)
    others = [row for row in rows if row is not reference]
    trained = [row for row in others if row.interpolated is None] or others
    ends, of_all = _ends(trained or list(rows))
    start = f"On {one_line(rows[0].dataset)}, "
    if reference is None or not others:
        lead = f"{start}{of_all}{and_then([_state(row) for row in ends])}."
    else:
        clauses = [_change(row, first=row is ends[0]) for row in ends]
        lead = f"{start}{_state(reference)}. {_capital(of_all)}{and_then(clauses)}."
    remarks = [_doubt(ends), _best(rows, reference), _seeds(others or rows)]
    return Finding(lead, " ".join(remark for remark in remarks if remark))


def _ends(rows: list[Row]) -> tuple[list[Row], str]:
    if len(rows) <= _CLAUSES:
        return rows, ""
    ordered = sorted(rows, key=_worst)
    return [ordered[-1], ordered[0]], f"the best and the worst of {len(rows)} methods: "


def _state(row: Row) -> str:
    name = one_line(row.label)
    return (
        f"{name} has {percent(row.worst_group.mean)}% in its worst group and {percent(row.average.mean)}% on average"
    )


def _change(row: Row, *, first: bool) -> str:
    assert row.worst_group_change is not None
    assert row.average_change is not None
    worst, average = _verb(row.worst_group_change), _verb(row.average_change)
    where, overall = (" points in the worst group", " on average") if first else ("", "")
    return (
        f"{one_line(row.label)} {worst} {_size(row.worst_group_change)}{where} (to {percent(row.worst_group.mean)}%) "
        f"and {'' if average == worst else f'{average} '}{_size(row.average_change)}{overall} "
        f"(to {percent(row.average.mean)}%)"
    )


def _size(change: Summary) -> str:
    return percent(abs(change.mean))


def _verb(change: Summary) -> str:
    if float(_size(change)) == 0:
        return "changes by"
    return "gains" if change.mean > 0 else "loses"


def _doubt(rows: Sequence[Row]) -> str:
    changes = [(row, row.worst_group_change) for row in rows]
    within = [
        one_line(row.label)
        for row, change in changes
        if change is not None and change.deviation is not None and abs(change.mean) <= change.deviation
    ]
    if not within:
        return ""
    verb = "changes" if len(within) == 1 else "change"
    return f"{and_then(within)} {verb} the worst group by no more than one standard deviation over seeds."


def _worst(row: Row) -> float:
    return row.worst_group.mean


def _best(rows: Sequence[Row], reference: Row | None) -> str:
    best = max(rows, key=_worst)
    if reference is not None and len(rows) > 1 and percent(_worst(best)) == percent(_worst(reference)):
        return f"Nothing here has a better worst group than {one_line(reference.label)}."
    if len(rows) < 3:
        return ""
    mean, deviation = cell(best.worst_group)
    value = f"{mean}%" if deviation is None else f"{mean} \u00b1 {deviation}%"
    return f"The best worst group is that of {one_line(best.label)}, {value}."


def _seeds(rows: Sequence[Row]) -> str:
    counts = {len(row.seeds) for row in rows}
    if counts == {1}:
        return "One seed each: how much of this is chance cannot be told."
    few, many = min(counts), max(counts)
    return f"Means over {many if few == many else f'{few} to {many}'} seeds."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
