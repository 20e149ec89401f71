"""The tables of a report in Markdown."""

from collections.abc import Sequence

from starft_hf.report.table import Entry, Row, cell, columns_of, shown_groups
from starft_hf.report.words import Finding
from starft_hf.utils.text import markdown


def as_markdown(
    title: str, findings: Sequence[Finding], entries: Sequence[Entry], rows: Sequence[Row], baseline: str
) -> str:
    """The report's sentences and tables.

    Args:
        title: of the report.
        findings: what happened, one per data set.
        entries: the models.
        rows: the table.
        baseline: name of the method that the others are compared with.
    """
    columns = columns_of(rows, baseline)
    head = ["data set", "model", "seeds", *(markdown(column.title) for column in columns)]
    lines = [
        [
            markdown(row.dataset),
            markdown(row.label),
            str(len(row.seeds)),
            *(_cell(*column.cell(row)) for column in columns),
        ]
        for row in rows
    ]
    parts = [
        f"# {markdown(title)}",
        *(markdown(f"{finding.lead} {finding.remarks}") for finding in findings),
        "In %, changes in percentage points; mean \u00b1 sample standard deviation over seeds. "
        "Gap: average less worst group. ECE: expected calibration error.",
        _table(head, lines, texts=2),
    ]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        sizes = entries[0].runs[0].results[dataset].group_sizes
        groups = shown_groups(own)
        parts.append(f"## Groups of {markdown(dataset)}")
        if len(groups) < len(own[0].groups):
            parts.append(f"The {len(groups)} groups of {len(own[0].groups)} that are hardest for some model.")
        lines = [
            [markdown(group), str(sizes[group]), *(_cell(*cell(row.groups[group])) for row in own)] for group in groups
        ]
        parts.append(_table(["group", "rows", *(markdown(row.label) for row in own)], lines, texts=1))
    return "\n\n".join(parts) + "\n"


def _cell(mean: str, deviation: str | None) -> str:
    return mean if deviation is None else f"{mean} \u00b1 {deviation}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], texts: int) -> str:
    rule = ["---"] * texts + ["---:"] * (len(head) - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])
