"""Tables for the terminal. Names come from users and datasets and are shown literally, without markup."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from starft_hf.utils.text import one_decimal, one_line, percent


if TYPE_CHECKING:
    from starft_hf.evaluation.results import AnyResult, MultiLabelResult, RetrievalResult
    from starft_hf.report.audit import AuditResult
    from starft_hf.spuriosity.result import DiscoveryResult
    from starft_hf.weights.repair import RepairResult


def result_table(result: "AnyResult", title: str) -> Table:
    """An evaluation: every group, or class where images may have several, or the recalls; and the figures of all."""
    from starft_hf.evaluation.results import MultiLabelResult, RetrievalResult

    if isinstance(result, MultiLabelResult):
        return _multi_label_table(result, title)
    if isinstance(result, RetrievalResult):
        return _retrieval_table(result, title)
    table = _table(title, ["group"], ["rows", "accuracy, %"])
    for group, accuracy in sorted(result.group_accuracies.items(), key=lambda item: item[1]):
        _add(table, [group], f"{result.group_sizes[group]:,}", percent(accuracy))
    table.add_section()
    table.add_row("average", f"{sum(result.group_sizes.values()):,}", percent(result.accuracy))
    table.add_row("worst group", "", percent(result.worst_group_accuracy))
    if result.group_adjusted_accuracy is not None:
        table.add_row("group-adjusted average", "", percent(result.group_adjusted_accuracy))
    table.add_row("expected calibration error", "", percent(result.ece))
    if result.skipped:
        table.add_row("skipped, unreadable image", f"{result.skipped:,}", "")
    return table


def _retrieval_table(result: "RetrievalResult", title: str) -> Table:
    """An evaluation by retrieval: the recalls both ways."""
    table = _table(title, ["from"], ["rows", "R@1, %", "R@5, %", "R@10, %"])
    for way, rows in (("image_to_text", result.images), ("text_to_image", result.captions)):
        recalls = (percent(getattr(result, f"{way}_recall_at_{cutoff}")) for cutoff in (1, 5, 10))
        _add(table, [way.replace("_", " ")], f"{rows:,}", *recalls)
    table.add_section()
    table.add_row("mean of all", "", percent(result.mean_recall))
    if result.skipped:
        table.add_row("skipped, unreadable image", f"{result.skipped:,}")
    return table


def _multi_label_table(result: "MultiLabelResult", title: str) -> Table:
    table = _table(title, ["class or group"], ["images", "AP or mAP, %", "F1, %"])
    for name, ap in sorted(result.class_ap.items(), key=lambda item: item[1]):
        _add(table, [name], f"{result.class_sizes[name]:,}", percent(ap), percent(result.class_f1[name]))
    for name, score in sorted(result.group_map.items(), key=lambda item: item[1]):
        _add(table, [f"group {name}"], f"{result.group_sizes[name]:,}", percent(score), percent(result.group_f1[name]))
    table.add_section()
    table.add_row("mean over classes", "", percent(result.map), percent(result.macro_f1))
    table.add_row("all pairs of image and class", "", "", percent(result.micro_f1))
    table.add_row("worst class", "", percent(result.worst_class_ap), percent(result.worst_class_f1))
    if result.group_map:
        worst = (min(part.values()) for part in (result.group_map, result.group_f1))
        table.add_row("worst group", "", *map(percent, worst))
    if result.skipped:
        table.add_row("skipped, unreadable image", f"{result.skipped:,}", "", "")
    return table


def repair_table(result: "RepairResult", title: str) -> Table:
    """The best candidate of every method, with the chosen one in bold."""
    table = _table(title, ["method", "settings"], ["average, %", "worst group, %", "95% interval"])
    for candidate in result.best_of_methods():
        settings = ", ".join(f"{name} {value:g}" for name, value in candidate.settings.items())
        score, chosen = candidate.score, candidate.method == result.method
        interval = " to ".join(one_decimal(end) for end in score.interval)
        numbers = (percent(score.average), percent(score.worst_group), interval)
        _add(table, [candidate.method, settings], *numbers, style="bold" if chosen else None)
    return table


def audit_table(result: "AuditResult", title: str) -> Table:
    """The groups of an audit, the worst first."""
    table = _table(title, ["group"], ["images", "accuracy, %", "95% interval", "before, %", "ECE, %"])
    groups = sorted(result.groups.items(), key=lambda item: item[1].after.accuracy)
    for name, group in [*groups, ("average", result.average)]:
        before = "" if group.before is None else percent(group.before.accuracy)
        interval = " to ".join(one_decimal(end) for end in group.after.interval)
        numbers = (percent(group.after.accuracy), interval, before, percent(group.after.ece))
        _add(table, [name], f"{group.images:,}", *numbers)
    return table


def associations_table(result: "DiscoveryResult", top: int) -> Table:
    """The first rows of a discovery, each with whether it was found."""
    found = f"{len(result.found)} of {len(result.attributes)} attributes are correlated with a label"
    names, numbers = ["label", "attribute", "aspect", "found"], ["effect", "p", "agreement"]
    table = _table(f"{found}, in {len(result.labels):,} images", names, numbers)
    for row in result.table[:top]:
        shown = (f"{row.effect:+.2f}", f"{row.p_value:.1g}", f"{row.agreement:.2f}")
        _add(table, [row.class_name, row.attribute, row.aspect, "yes" if row.found else "no"], *shown)
    return table


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=escape(one_line(title)), title_justify="left")
    for heading in (*texts, *numbers):
        table.add_column(heading, justify="left" if heading in texts else "right")
    return table


def _add(table: Table, names: Sequence[str], *numbers: str, style: str | None = None) -> None:
    table.add_row(*(escape(one_line(name)) for name in names), *numbers, style=style)
