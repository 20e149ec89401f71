"""The figures of a report with what is said about them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starft_hf.report import plots
from starft_hf.report.plots import Style
from starft_hf.report.series import FEWEST_IN_BIN, pooled_bins, training_line, wise_ft_curve
from starft_hf.report.svg import as_svg, drawing
from starft_hf.report.table import Entry, Row, Summary, cell, shown_groups, without_interpolations
from starft_hf.utils.files import write_bytes_atomically
from starft_hf.utils.text import one_line, percent


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Illustration:
    """A figure for a page.

    Attributes:
        kind: what sort of figure it is, for the page's tests and style sheet.
        svg: the figure as an SVG element.
        title: the first words of the caption.
        caption: the rest of it.
    """

    kind: str
    svg: str
    title: str
    caption: str


def dataset_figures(
    entries: Sequence[Entry], rows: Sequence[Row], styles: Mapping[str, Style], baseline: str, prefix: str
) -> list[Illustration]:
    """The figures about one data set.

    Args:
        entries: the models.
        rows: the table's rows of the data set, in the same order.
        styles: by method.
        baseline: name of the method that the others are compared with.
        prefix: what the ids in the figures start with.
    """
    figures = [_overview(rows, styles, baseline, f"{prefix}-overview"), _groups(entries, rows, styles, prefix)]
    reliability = _reliability(entries, rows, styles, f"{prefix}-reliability")
    return figures + ([reliability] if reliability is not None else [])


def _overview(rows: Sequence[Row], styles: Mapping[str, Style], baseline: str, prefix: str) -> Illustration:
    reference = next((row for row in rows if (row.method, row.interpolated) == (baseline, None)), None)
    alt = "Worst group and average. " + "; ".join(
        f"{one_line(row.label)}: {percent(row.worst_group.mean)}% and {percent(row.average.mean)}%" for row in rows
    )
    caption = "The longer the bar between the two, the less the average says about the worst group."
    if reference is not None:
        caption += f" Dashed: the worst group of {one_line(baseline)}."
    with drawing():
        svg = as_svg(plots.draw_overview(rows, styles, reference), prefix, alt)
    return Illustration("overview", svg, "Worst group and average.", f"{caption}{_spread(rows)}")


def _groups(entries: Sequence[Entry], rows: Sequence[Row], styles: Mapping[str, Style], prefix: str) -> Illustration:
    kept = without_interpolations(entries)
    drawn = [row for row, entry in zip(rows, entries, strict=True) if entry in kept]
    groups = shown_groups(rows)
    sizes = entries[0].runs[0].results[rows[0].dataset].group_sizes
    alt = "Accuracy of every group. " + "; ".join(
        f"{one_line(group)}: "
        + ", ".join(f"{one_line(row.label)} {percent(row.groups[group].mean)}%" for row in drawn)
        for group in groups
    )
    caption = "In brackets the rows of a group."
    if len(groups) < len(rows[0].groups):
        caption += f" Shown are the {len(groups)} groups of {len(rows[0].groups)} that are hardest for some model."
    with drawing():
        svg = as_svg(plots.draw_groups(drawn, groups, sizes, styles), f"{prefix}-groups", alt)
    return Illustration("groups", svg, "Accuracy of every group.", f"{caption}{_spread(drawn)}")


def _reliability(
    entries: Sequence[Entry], rows: Sequence[Row], styles: Mapping[str, Style], prefix: str
) -> Illustration | None:
    kept = without_interpolations(entries)
    found = [
        (entry, row, bins)
        for entry, row in zip(entries, rows, strict=True)
        if entry in kept and (bins := pooled_bins(entry, row.dataset)) is not None
    ]
    if not found:
        return None
    errors = ", ".join(f"{one_line(row.label)} {_with_deviation(row.ece)}" for _, row, _ in found)
    rare = any((bins.count[~bins.shown] > 0).any() for _, _, bins in found)
    left_out = f"Points of less than {FEWEST_IN_BIN:.0%} of the predictions are left out. " if rare else ""
    number = len(found[0][2].count)
    caption = (
        f"Predictions in {number} bins of confidence. Below the dashed line a model is surer than it is right, above "
        f"it less sure. {left_out}Below: predictions per bin. Expected calibration error in %: {errors}."
    )
    with drawing():
        figure = plots.draw_reliability([entry for entry, _, _ in found], [bins for _, _, bins in found], styles)
        svg = as_svg(figure, prefix, f"Reliability diagram. Expected calibration error in %: {errors}")
    return Illustration("reliability", svg, "Reliability diagram.", caption)


def training_figure(entries: Sequence[Entry], styles: Mapping[str, Style]) -> Illustration | None:
    """The losses while training, or None where no run has a log."""
    logged = [entry for entry in without_interpolations(entries) if any(run.log for run in entry.runs)]
    if not logged:
        return None
    aligned = [entry for entry in logged if any(point.reg_loss != 0 for run in entry.runs for point in run.log)]
    base = [training_line(entry, lambda point: point.base_loss) for entry in logged]
    panels = {"Base loss": base}
    if aligned:
        panels["Alignment loss, before its weight"] = [
            training_line(entry, lambda point: point.reg_loss) if entry in aligned else None for entry in logged
        ]
    parts = ["Thin: single seeds."] if any(line is not None and len(line.seeds) > 1 for line in base) else []
    merged = max(line.merged for line in base if line is not None)
    if merged > 1:
        parts.append(f"A point is the mean of {merged} entries of the log.")
    if aligned:
        parts.append(f"Weight of the alignment loss: {', '.join(_weights(entry) for entry in aligned)}.")
    else:
        parts.append("No run had an alignment loss.")
    ends = "; ".join(_losses(entry) for entry in logged)
    with drawing():
        svg = as_svg(plots.draw_training(logged, panels, styles), "training", f"Losses by step. {ends}")
    return Illustration("training", svg, "Losses while training.", " ".join(parts))


def _weights(entry: Entry) -> str:
    weights = [point.reg_weight for run in entry.runs for point in run.log]
    first, last = weights[0], weights[-1]
    constant = min(weights) == max(weights)
    return f"{one_line(entry.label)} {first:g}" + ("" if constant else f" at the start, {last:g} at the end")


def _losses(entry: Entry) -> str:
    log = next(run.log for run in entry.runs if run.log)
    return (
        f"{one_line(entry.label)}, base loss from {log[0].base_loss:.3g} to {log[-1].base_loss:.3g}, "
        f"alignment loss from {log[0].reg_loss:.3g} to {log[-1].reg_loss:.3g}"
    )


def wise_ft_figure(
    entries: Sequence[Entry], styles: Mapping[str, Style], axes: tuple[str, str]
) -> Illustration | None:
    """The WiSE-FT curves, or None where no run has one.

    Args:
        entries: the models.
        styles: by method.
        axes: what the accuracies in and out of distribution are called.
    """
    found = [(entry, curve) for entry in without_interpolations(entries) if (curve := wise_ft_curve(entry))]
    if not found:
        return None
    entry, best = max(
        ((entry, point) for entry, curve in found for point in curve), key=lambda pair: pair[1].out_of_distribution
    )
    highest = (
        f"{one_line(entry.method)} with a share of {best.alpha:g} of the fine-tuned weights, "
        f"{one_line(axes[1])} {percent(best.out_of_distribution)}%, {one_line(axes[0])} "
        f"{percent(best.in_distribution)}%"
    )
    caption = (
        "Each point is a model between the zero-shot weights and the fine-tuned weights, whose points have an edge. "
        f"Highest: {highest}. A share picked on this curve looks better than it is; pick it on "
        "a validation set."
    )
    with drawing():
        figure = plots.draw_wise_ft([entry for entry, _ in found], [curve for _, curve in found], styles, axes)
        svg = as_svg(figure, "wise-ft", f"WiSE-FT curves. Highest: {highest}")
    return Illustration("wise-ft", svg, "WiSE-FT.", caption)


def _spread(rows: Sequence[Row]) -> str:
    several = any(row.worst_group.deviation is not None for row in rows)
    return " Whiskers: one standard deviation over seeds." if several else ""


def _with_deviation(summary: Summary) -> str:
    mean, deviation = cell(summary)
    return mean if deviation is None else f"{mean} \u00b1 {deviation}"


def save_figures(entries: Sequence[Entry], rows: Sequence[Row], baseline: str, folder: Path) -> list[tuple[str, Path]]:
    """Write worst groups and all groups of every data set as PNG files; what each shows, and its path."""
    styles, saved = plots.styles_of(entries, baseline), []
    for number, dataset in enumerate(entries[0].runs[0].results):
        of_dataset = [row for row in rows if row.dataset == dataset]
        reference = next((row for row in of_dataset if row.method == baseline and row.interpolated is None), None)
        groups, sizes = shown_groups(of_dataset), entries[0].runs[0].results[dataset].group_sizes
        with drawing():
            overview = _as_png(plots.draw_overview(of_dataset, styles, reference))
            bars = _as_png(plots.draw_groups(of_dataset, groups, sizes, styles))
        for kind, words, png in (
            ("overview", "Worst group and average", overview),
            ("groups", "Accuracy of every group", bars),
        ):
            path = folder / f"{kind}-{number}.png"
            write_bytes_atomically(path, png)
            saved.append((f"{words}, {dataset}", path))
    return saved


def _as_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
