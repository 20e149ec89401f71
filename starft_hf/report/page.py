"""The report as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from starft_hf.report.methods import explained
from starft_hf.report.mistakes import galleries_of
from starft_hf.report.retrieval import RECALL_NOTE, RetrievalSection, retrieval_columns_of, retrieval_finding
from starft_hf.report.rows import Section
from starft_hf.report.table import MODEL, SEEDS, Table, measures
from starft_hf.report.words import finding_of
from starft_hf.utils.text import one_line


def check_extra() -> None:
    """Raise an ImportError if a package for the page is not installed, naming it and how to install it."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        missing = f"a report's page needs jinja2 and matplotlib, and {error.name} is not installed"
        raise ImportError(f"{missing}: pip install 'starft_hf[report]'", name=error.name) from error


def render_page(
    title: str,
    sections: Sequence[Section],
    retrieval: Sequence[RetrievalSection],
    curve_axes: tuple[str, str],
    thumbnails: Mapping[str, Mapping[int, Any]],
    about: Mapping[str, str],
    audits: Mapping[str, Mapping[str, Any]],
) -> str:
    """The HTML of the page, with the arguments and errors of `RobustnessReport`."""
    check_extra()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    import starft_hf
    from starft_hf.report import figures
    from starft_hf.report.audit.page import sentences
    from starft_hf.report.plots import Style
    from starft_hf.utils.plotting import COLORS, DARK_COLORS, SERIES

    first: Any = [*sections, *retrieval][0]
    entries = first.entries
    columns = [MODEL, *measures(sections), SEEDS] if sections else []
    environment = Environment(
        loader=PackageLoader("starft_hf.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template("template.html.jinja").render(
        title=title,
        about=about,
        methods=explained(entries),
        findings=[*map(finding_of, sections), *map(retrieval_finding, retrieval)],
        summaries=[(section.dataset, Table.of(columns, [section])) for section in sections],
        datasets=[
            {
                "name": section.dataset,
                "anchor": f"dataset-{number}",
                "groups": Table.of_groups(section),
                "cut": section.cut,
                "figures": figures.dataset_figures(section, f"d{number}"),
                "galleries": galleries_of(section, thumbnails.get(section.dataset, {})),
            }
            for number, section in enumerate(sections, start=1)
        ],
        retrieval=[
            (section.dataset, Table.of(retrieval_columns_of([section])[1:], [section])) for section in retrieval
        ],
        recall_note=RECALL_NOTE,
        others=figures.training_figures(first, curve_axes),
        audits=[(name, content["score"], sentences(content)) for name, content in audits.items()],
        colors=COLORS,
        dark_colors=DARK_COLORS,
        series={entry.label: SERIES.index(Style.of(entry).color) for entry in entries},
        several_seeds=any(len(entry.runs) > 1 for entry in entries),
        baseline=entries[0].label if entries[0].is_baseline and len(entries) > 1 else None,
        version=starft_hf.__version__,
    )


def _visible(value: Any) -> Any:
    # Whatever is not markup already is a name or a number, and is shown on one line.
    return one_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
