"""The figures of a report with their captions and alternative texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starft_hf.report import plots
from starft_hf.report.retrieval import RetrievalSection
from starft_hf.report.rows import Entry, Row, Section
from starft_hf.report.series import MIN_BIN_FRACTION, Line, pooled_bins, training_line, wise_ft_curve
from starft_hf.report.svg import as_svg
from starft_hf.report.table import Cell
from starft_hf.utils.files import write_bytes_atomically
from starft_hf.utils.plotting import as_png, drawing
from starft_hf.utils.text import and_then, one_line, percent


@dataclass(frozen=True)
class Illustration:
    """A figure for a page, as an SVG element; `title` holds the first words of the caption."""

    kind: str
    svg: str
    title: str
    caption: str


@drawing()
def dataset_figures(section: Section, prefix: str) -> list[Illustration]:
    """The figures about one dataset."""
    return [_overview(section, prefix), _groups(section, prefix), *_reliability(section, prefix)]


def _overview(section: Section, prefix: str) -> Illustration:
    title, rows = "Worst group and average.", section.rows
    caption = "The longer the bar between the two, the less the average says about the worst group."
    if section.reference is not None:
        caption += f" Dashed: the worst group of {one_line(section.reference.label)}."
    figures = "; ".join(
        f"{one_line(row.label)}: {percent(row.worst_group.mean)}% and {percent(row.average.mean)}%" for row in rows
    )
    svg = as_svg(plots.draw_overview(section), f"{prefix}-overview", f"{title} {figures}")
    return Illustration("overview", svg, title, f"{caption}{_spread(rows)}")


def _groups(section: Section, prefix: str) -> Illustration:
    title, rows = "Accuracy of every group.", [row for _, row in section.trained]
    figures = "; ".join(
        f"{one_line(group)}: " + ", ".join(f"{one_line(row.label)} {percent(row.groups[group].mean)}%" for row in rows)
        for group in section.groups
    )
    svg = as_svg(plots.draw_groups(section), f"{prefix}-groups", f"{title} {figures}")
    caption = f"The number of images of a group is in parentheses. {section.cut}".strip()
    return Illustration("groups", svg, title, f"{caption}{_spread(rows)}")


def _reliability(section: Section, prefix: str) -> Iterator[Illustration]:
    found = [(entry, row, bins) for entry, row in section.trained if (bins := pooled_bins(entry, section.dataset))]
    if not found:
        return
    errors = "Expected calibration error in %: " + ", ".join(
        f"{one_line(row.label)} {Cell.of(row.ece)}" for _, row, _ in found
    )
    rare = any((bins.count[~bins.shown] > 0).any() for _, _, bins in found)
    excluded = f"Points of less than {MIN_BIN_FRACTION:.0%} of the predictions are not shown. " if rare else ""
    figure = plots.draw_reliability([(entry, bins) for entry, _, bins in found])
    yield Illustration(
        "reliability",
        as_svg(figure, f"{prefix}-reliability", f"Reliability diagram. {errors}"),
        "Reliability diagram.",
        f"Predictions in {len(found[0][2].count)} bins of confidence. Below the dashed line a model is overconfident, "
        f"above it underconfident. {excluded}Below: predictions per bin. {errors}.",
    )


@drawing()
def training_figures(section: Section | RetrievalSection, axes: tuple[str, str]) -> list[Illustration]:
    """The losses while training and the WiSE-FT curves of the models of any section, if they have some."""
    return [*_training(section), *_wise_ft(section, axes)]


def _training(section: Section | RetrievalSection) -> Iterator[Illustration]:
    logged = [entry for entry, _ in section.trained if any(run.log for run in entry.runs)]
    if not logged:
        return
    aligned = [entry for entry in logged if any(point.reg_loss != 0 for run in entry.runs for point in run.log)]
    base = [training_line(entry, lambda point: point.base_loss) for entry in logged]
    panels: dict[str, Sequence[Line | None]] = {"Base loss": base}
    if aligned:
        panels["Alignment loss, before its weight"] = [
            training_line(entry, lambda point: point.reg_loss) if entry in aligned else None for entry in logged
        ]
    parts = ["Thin: single seeds."] if any(len(line.seeds) > 1 for line in base) else []
    if (merged := max(line.merged for line in base)) > 1:
        parts.append(f"A point is the mean of {merged} entries of the log.")
    if any(line.interpolated for line in base):
        parts.append("Means between the logged steps of a seed are interpolated.")
    if apart := [one_line(entry.label) for entry, line in zip(logged, base, strict=True) if not len(line.x)]:
        parts.append(f"The seeds of {and_then(apart)} logged no steps in the same part of a run, and have no mean.")
    if aligned:
        parts.append(f"Weight of the alignment loss: {', '.join(_weights(entry) for entry in aligned)}.")
    else:
        parts.append("No run had an alignment loss.")
    ends = "; ".join(_losses(entry) for entry in logged)
    svg = as_svg(plots.draw_training(logged, panels), "training", f"Losses by step. {ends}")
    yield Illustration("training", svg, "Losses while training.", " ".join(parts))


def _weights(entry: Entry) -> str:
    weights = [[point.reg_weight for point in run.log] for run in entry.runs if run.log]
    start, end = (_range([of_seed[place] for of_seed in weights]) for place in (0, -1))
    changes = any(len(set(of_seed)) > 1 for of_seed in weights)
    return f"{one_line(entry.label)} {start}{f' at the start, {end} at the end' if changes else ''}"


def _range(values: Sequence[float]) -> str:
    """One number, or from which to which number the seeds go."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _losses(entry: Entry) -> str:
    log = next(run.log for run in entry.runs if run.log)
    return (
        f"{one_line(entry.label)}, base loss from {log[0].base_loss:.3g} to {log[-1].base_loss:.3g}, "
        f"alignment loss from {log[0].reg_loss:.3g} to {log[-1].reg_loss:.3g}"
    )


def _wise_ft(section: Section | RetrievalSection, axes: tuple[str, str]) -> Iterator[Illustration]:
    found = [(entry, curve) for entry, _ in section.trained if (curve := wise_ft_curve(entry))]
    if not found:
        return
    points = [(entry, point) for entry, curve in found for point in curve]
    entry, best = max(points, key=lambda pair: pair[1].worst_group)
    highest = (
        f"Highest: {one_line(entry.method)} with alpha {best.alpha:g}, {one_line(axes[1])} "
        f"{percent(best.worst_group)}%, {one_line(axes[0])} {percent(best.average)}%"
    )
    caption = (
        "Each point is a model between the zero-shot weights (alpha 0) and the fine-tuned weights (alpha 1), whose "
        f"points have an edge. {highest}. An alpha chosen on this curve looks better than it is; choose it on a "
        "validation set."
    )
    svg = as_svg(plots.draw_wise_ft(found, axes), "wise-ft", f"WiSE-FT curves. {highest}")
    yield Illustration("wise-ft", svg, "WiSE-FT.", caption)


def _spread(rows: Sequence[Row]) -> str:
    several = any(row.worst_group.deviation is not None for row in rows)
    return " Whiskers: one standard deviation over seeds." if several else ""


@drawing()
def save_figures(sections: Sequence[Section], folder: Path) -> list[tuple[str, Path]]:
    """Write worst groups and all groups of every dataset as PNG files; what each shows, and its path."""
    saved = []
    for number, section in enumerate(sections):
        for kind, words, draw in (
            ("overview", "Worst group and average", plots.draw_overview),
            ("groups", "Accuracy of every group", plots.draw_groups),
        ):
            path = folder / f"{kind}-{number}.png"
            write_bytes_atomically(path, as_png(draw(section)))
            saved.append((f"{words}, {section.dataset}", path))
    return saved
