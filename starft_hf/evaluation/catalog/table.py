"""The catalogue as a table."""

from starft_hf.data.groups import SEPARATOR
from starft_hf.evaluation.catalog.entry import BenchmarkEntry
from starft_hf.evaluation.catalog.registry import ENTRIES


HEADINGS = ("Name", "Benchmark", "On the Hub", "Classes", "Groups", "Measure", "Checked")


def catalog_table() -> str:
    """All benchmarks as a Markdown table: name, Hub id, classes, groups, measure, and when columns were checked."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *map(_row, ENTRIES.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(entry: BenchmarkEntry) -> tuple[str, ...]:
    groups = SEPARATOR.join("class" if column == "label" else column for column in entry.group_columns) or "class"
    if entry.ignored_groups:
        groups += f", without {', '.join(entry.ignored_groups)}"
    return (
        f"`{entry.name}`",
        entry.title,
        f"`{entry.hub_id}`".replace(" + ", "` + `"),
        f"{entry.num_classes:,}",
        groups,
        entry.metric.replace("_", " "),
        entry.checked or "never",
    )
