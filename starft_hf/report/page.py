"""The report as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starft_hf.report.mistakes import galleries_of
from starft_hf.report.table import Entry, Row, cell, columns_of, shown_groups
from starft_hf.report.words import Finding
from starft_hf.utils.text import one_line


if TYPE_CHECKING:
    from jinja2 import Environment

_MISSING = "a report's page needs jinja2 and matplotlib, and {name} is not installed: pip install 'starft_hf[report]'"


def check_extra() -> None:
    """Check that what the page is made with is installed.

    Raises:
        ImportError: naming the package that is missing and how to install it.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(_MISSING.format(name=error.name), name=error.name) from error


def render_page(
    title: str,
    findings: Sequence[Finding],
    entries: Sequence[Entry],
    rows: Sequence[Row],
    *,
    baseline: str,
    curve_axes: tuple[str, str],
    thumbnails: Mapping[str, Mapping[int, Any]],
) -> str:
    """The page's HTML.

    Args:
        title: of the page.
        findings: what happened, one per data set.
        entries: the models.
        rows: the table.
        baseline: name of the method that the others are compared with.
        curve_axes: what the two accuracies of the WiSE-FT curve are called.
        thumbnails: pictures by data set and index.

    Raises:
        ImportError: if jinja2 or matplotlib is missing.
        TypeError: if a thumbnail is no picture.
    """
    check_extra()
    import starft_hf
    from starft_hf.report import figures
    from starft_hf.report.plots import styles_of
    from starft_hf.report.svg import SERIES

    styles = styles_of(entries, baseline)
    columns = columns_of(rows, baseline)
    datasets = []
    for number, dataset in enumerate(dict.fromkeys(row.dataset for row in rows), start=1):
        own = [row for row in rows if row.dataset == dataset]
        datasets.append(
            {
                "name": dataset,
                "anchor": f"dataset-{number}",
                "lines": [_line(row, own, columns) for row in own],
                "groups": _group_table(entries, own),
                "left_out": len(own[0].groups) - len(shown_groups(own)),
                "figures": figures.dataset_figures(entries, own, styles, baseline, f"d{number}"),
                "galleries": galleries_of(entries, dataset, thumbnails.get(dataset, {})),
            }
        )
    others = [figures.training_figure(entries, styles), figures.wise_ft_figure(entries, styles, curve_axes)]
    return (
        _environment()
        .get_template("template.html.jinja")
        .render(
            title=title,
            findings=findings,
            columns=[column.title for column in columns],
            datasets=datasets,
            others=[figure for figure in others if figure is not None],
            labels=[entry.label for entry in entries],
            series={entry.label: SERIES.index(styles[entry.method].colour) for entry in entries},
            several_seeds=any(len(entry.runs) > 1 for entry in entries),
            baseline=baseline if any(row.average_change for row in rows) else None,
            version=starft_hf.__version__,
        )
    )


def _line(row: Row, rows: Sequence[Row], columns: Sequence[Any]) -> dict[str, Any]:
    cells = [{"value": column.cell(row), "best": column.is_best(row, rows)} for column in columns]
    return {"label": row.label, "seeds": len(row.seeds), "cells": cells}


def _group_table(entries: Sequence[Entry], rows: Sequence[Row]) -> list[dict[str, Any]]:
    sizes = entries[0].runs[0].results[rows[0].dataset].group_sizes
    return [
        {"name": group, "size": sizes[group], "cells": [cell(row.groups[group]) for row in rows]}
        for group in shown_groups(rows)
    ]


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("starft_hf.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )


def _visible(value: Any) -> Any:
    # Whatever is not markup already is a name or a number, and goes into one line.
    return one_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
