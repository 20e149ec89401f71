"""What commands print: tables for people, JSON for machines."""

import contextlib
import json
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO


if TYPE_CHECKING:
    from starft_hf import RobustnessReport
    from starft_hf.evaluation.results import EvaluationResult
    from starft_hf.spuriosity.result import DiscoveryResult


_for_json: ContextVar[TextIO | None] = ContextVar("for_json", default=None)


@contextlib.contextmanager
def nothing_but_json() -> Iterator[None]:
    """Within, the standard output is for `print_json` alone; what else is printed goes to the standard error."""
    token = _for_json.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _for_json.reset(token)


def print_json(content: Any) -> None:
    """One line of JSON on the standard output."""
    from starft_hf.report.data import as_plain

    print(json.dumps(as_plain(content), allow_nan=False), file=_for_json.get() or sys.stdout, flush=True)


def print_written(folder: Path, *, as_json: bool) -> None:
    """Where something was written to, of a command with no other outcome."""
    if as_json:
        print_json({"output": str(folder)})
    else:
        print(f"Written to {folder}.")


def print_result(result: "EvaluationResult", title: str) -> None:
    """A table of an evaluation: its figures, and group by group."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from starft_hf.utils.text import one_line, percent

    table = Table(title=escape(one_line(title)), title_justify="left")
    for heading in ("group", "rows", "accuracy, %"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    for group, accuracy in sorted(result.group_accuracies.items(), key=lambda item: item[1]):
        table.add_row(escape(one_line(group)), f"{result.group_sizes[group]:,}", percent(accuracy))
    table.add_section()
    rows = f"{sum(result.group_sizes.values()):,}"
    table.add_row("average", rows, percent(result.accuracy))
    table.add_row("worst group", "", percent(result.worst_group_accuracy))
    if result.group_adjusted_accuracy is not None:
        table.add_row("group-adjusted average", "", percent(result.group_adjusted_accuracy))
    table.add_row("expected calibration error", "", percent(result.ece))
    if result.skipped:
        table.add_row("left out, image unreadable", f"{result.skipped:,}", "")
    Console().print(table)


def print_report(report: "RobustnessReport") -> None:
    """The table of a report, and its sentences."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from starft_hf.report.table import Summary
    from starft_hf.utils.text import one_line, percent

    def shown(summary: Summary) -> str:
        spread = "" if summary.deviation is None else f" ± {percent(summary.deviation)}"
        return percent(summary.mean) + spread

    console = Console()
    table = Table(title="Accuracy in %", title_justify="left")
    for heading in ("data", "model", "average", "worst group", "ECE"):
        table.add_column(heading, justify="left" if heading in ("data", "model") else "right")
    for row in report.rows:
        names = (escape(one_line(name)) for name in (row.dataset, row.label))
        table.add_row(*names, shown(row.average), shown(row.worst_group), shown(row.ece))
    console.print(table)
    for finding in report.findings:
        console.print(escape(f"{finding.lead} {finding.remarks}".strip()))


def print_associations(result: "DiscoveryResult", top: int) -> None:
    """The first rows of the table of a discovery; what is below the line is dim."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from starft_hf.utils.text import one_line

    found = len(result.found)
    title = (
        f"{found} of {len(result.attributes)} attributes go together with a label, in {len(result.labels):,} images"
    )
    table = Table(title=title, title_justify="left")
    texts = ("label", "attribute", "aspect")
    for heading in (*texts, "effect", "p", "agreement"):
        table.add_column(heading, justify="left" if heading in texts else "right")
    for row in result.table[:top]:
        names = (escape(one_line(name)) for name in (row.class_name, row.attribute, row.aspect))
        numbers = (f"{row.effect:+.2f}", f"{row.p_value:.3g}", f"{row.agreement:.2f}")
        table.add_row(*names, *numbers, style=None if row.found else "dim")
    Console().print(table)
