"""The one table of the package, with its renderers for Markdown and terminals; the page's template renders it too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from starft_hf.report.rows import Section, Summary
from starft_hf.utils.text import markdown, one_decimal, one_line, percent, points


@dataclass(frozen=True)
class Cell:
    """A measure as a table shows it, in percent or points; empty if there is nothing to show."""

    mean: str = ""
    deviation: str | None = None
    best: bool = False

    @classmethod
    def of(cls, summary: Summary | None, shows: Callable[[float], str] = percent) -> "Cell":
        """The cell of a summary, whose mean `shows` writes."""
        if summary is None:
            return cls()
        return cls(shows(summary.mean), None if summary.deviation is None else one_decimal(summary.deviation))

    def __str__(self) -> str:
        return self.mean if self.deviation is None else f"{self.mean} \u00b1 {self.deviation}"


@dataclass(frozen=True)
class Column:
    """A column of a table of rows: what it shows of a row, how it writes a number, and whether it is a name.

    `best` selects the best value of a dataset: `max`, `min`, or None if no value is better than another.
    """

    heading: str
    value: Callable[[Any], str | Summary | None]
    shows: Callable[[float], str] = percent
    name: bool = False
    best: Callable[[list[float]], float] | None = None

    def cells(self, rows: Sequence[Any]) -> list[str | Cell]:
        """Its cells for the rows of one dataset."""
        values = [self.value(row) for row in rows]
        cells = [value if isinstance(value, str) else Cell.of(value, self.shows) for value in values]
        # Compared as shown: which of two 79.1 is higher means nothing.
        shown = {cell.mean for cell in cells if isinstance(cell, Cell)} - {"", "nan"}
        if self.best is None or len(shown) < 2:
            return cells
        best = self.best([_number(mean) for mean in shown])
        return [
            replace(cell, best=cell.mean in shown and _number(cell.mean) == best) if isinstance(cell, Cell) else cell
            for cell in cells
        ]


def _number(shown: str) -> float:
    return float(shown.replace("\u2212", "-"))


DATASET = Column("dataset", lambda row: row.dataset, name=True)
MODEL = Column("model", lambda row: row.label, name=True)
SEEDS = Column("seeds", lambda row: str(len(row.seeds)))
AVERAGE = Column("average", lambda row: row.average, best=max)
WORST_GROUP = Column("worst group", lambda row: row.worst_group, best=max)
GAP = Column("gap", lambda row: row.gap, one_decimal, best=min)
ECE = Column("ECE", lambda row: row.ece, best=min)


def measures(sections: Sequence[Section]) -> list[Column]:
    """The columns of all measures; changes only if there is a baseline to compare with."""
    columns, reference = [AVERAGE, WORST_GROUP, GAP, ECE], sections[0].reference
    if reference is not None and len(sections[0].rows) > 1:
        columns += [
            Column(f"average, change to {reference.label}", lambda row: row.average_change, points, best=max),
            Column(f"worst group, change to {reference.label}", lambda row: row.worst_group_change, points, best=max),
        ]
    return columns


@dataclass(frozen=True)
class Table:
    """Lines under headings; the first `names` columns hold names, which the renderers escape, the others numbers."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str | Cell]]
    names: int = 1

    @classmethod
    def of(cls, columns: Sequence[Column], sections: Sequence[Any]) -> "Table":
        """A line for every model on every dataset."""
        lines = [
            line
            for section in sections
            for line in zip(*(column.cells(section.rows) for column in columns), strict=True)
        ]
        return cls([column.heading for column in columns], lines, sum(column.name for column in columns))

    @classmethod
    def of_groups(cls, section: Section) -> "Table":
        """A line for every group of a dataset that is shown, with the accuracy of every model."""
        lines: list[list[str | Cell]] = [
            [group, str(section.sizes[group]), *(Cell.of(row.groups[group]) for row in section.rows)]
            for group in section.groups
        ]
        return cls(["group", "rows", *(row.label for row in section.rows)], lines)

    def as_markdown(self) -> str:
        """The table in Markdown."""
        head, *body = ([markdown(str(cell)) for cell in line] for line in (self.headings, *self.lines))
        rule = ["---"] * self.names + ["---:"] * (len(head) - self.names)
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))

    def as_rich(self, title: str) -> RichTable:
        """The table for a terminal."""
        table = RichTable(title=escape(one_line(title)), title_justify="left")
        for index, heading in enumerate(self.headings):
            # Headings and long names are broken into lines, numbers and short names are not.
            width = max((len(str(line[index])) for line in self.lines), default=0)
            if index < self.names:
                table.add_column(escape(one_line(heading)), no_wrap=width < 30)
            else:
                table.add_column(escape(one_line(heading)), justify="right", min_width=width)
        for line in self.lines:
            table.add_row(*(escape(one_line(str(cell))) for cell in line))
        return table
