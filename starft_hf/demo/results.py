"""What the demo shows of its report: a table of its own, and one sentence."""

from rich.table import Table as RichTable

from starft_hf.demo.experiment import HELD_OUT, Setting
from starft_hf.report import RobustnessReport
from starft_hf.report.rows import Section
from starft_hf.report.table import AVERAGE, MODEL, WORST_GROUP, Column, Table
from starft_hf.training.methods import ZERO_SHOT
from starft_hf.utils.text import one_decimal, percent


# Width of a terminal that one table fits without breaking numbers in two.
_WIDTH_OF_ONE_TABLE = 118


def section_of(report: RobustnessReport, dataset: str) -> Section:
    """The part of the report about one dataset."""
    return next(section for section in report.sections if section.dataset == dataset)


def _columns(report: RobustnessReport, setting: Setting) -> tuple[list[Column], list[Column]]:
    """The columns of overall accuracies, and of those of every group."""
    held_out = {row.label: row.average for row in section_of(report, HELD_OUT).rows}
    groups = sorted(section_of(report, setting.split).groups)
    return [AVERAGE, WORST_GROUP, Column(HELD_OUT, lambda row: held_out[row.label])], [
        Column(group, lambda row, group=group: row.groups[group])  # type: ignore[misc]
        for group in groups
    ]


def as_tables(report: RobustnessReport, setting: Setting, width: int) -> list[RichTable]:
    """Accuracies for a terminal `width` characters wide; a narrow one gets the groups in a second table."""
    overall, groups = _columns(report, setting)
    sections = [section_of(report, setting.split)]
    seeds = len(sections[0].rows[-1].seeds)
    title = f"Accuracy in %, {setting.split} split, "
    title += "one seed" if seeds == 1 else f"mean \u00b1 standard deviation, {seeds} seeds"
    if width >= _WIDTH_OF_ONE_TABLE:
        return [Table.of([MODEL, *overall, *groups], sections).as_rich(title)]
    tables = ((title, overall), ("The same, group by group", groups))
    return [Table.of([MODEL, *columns], sections).as_rich(title) for title, columns in tables]


def as_markdown(report: RobustnessReport, setting: Setting) -> str:
    """The same as one table in Markdown."""
    overall, groups = _columns(report, setting)
    return Table.of([MODEL, *overall, *groups], [section_of(report, setting.split)]).as_markdown() + "\n"


def as_sentence(report: RobustnessReport, setting: Setting) -> str:
    """The result of this run in numbers."""
    rows = {row.method: row for _, row in section_of(report, setting.split).trained}
    worst = {method: percent(row.worst_group.mean) for method, row in rows.items()}
    average = {method: percent(row.average.mean) for method, row in rows.items()}
    gain, seeds = rows["star"].worst_group.mean - rows["FLYP"].worst_group.mean, len(rows["star"].seeds)
    return (
        f"Plain fine-tuning (FLYP) moved the worst group from {worst[ZERO_SHOT]}% to {worst['FLYP']}% and the "
        f"average from {average[ZERO_SHOT]}% to {average['FLYP']}%; StarFT, with the same steps, learning "
        f"rate and data order, ended at {worst['star']}% and {average['star']}%: {one_decimal(abs(gain))} points "
        f"{'better' if gain >= 0 else 'worse'} in the worst group"
        f"{f' (means over {seeds} seeds)' if seeds > 1 else ''}."
    )
