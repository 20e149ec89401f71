"""`RobustnessReport`: compares runs in tables, sentences and one HTML page."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from rich.text import Text

from starft_hf.evaluation.results import RECALLS_AT_1
from starft_hf.report.data import Run, as_plain, check_runs
from starft_hf.report.figures import save_figures
from starft_hf.report.methods import explained
from starft_hf.report.mistakes import thumbnails_as_plain, thumbnails_from_plain
from starft_hf.report.page import check_extra, render_page
from starft_hf.report.retrieval import RECALL_NOTE, retrieval_columns_of, retrieval_finding, retrieval_sections_of
from starft_hf.report.rows import Row, entries_of, sections_of
from starft_hf.report.table import AVERAGE, DATASET, ECE, MODEL, SEEDS, WORST_GROUP, Table, measures
from starft_hf.report.words import Finding, finding_of
from starft_hf.utils.files import check_writable, expanded, write_text_atomically
from starft_hf.utils.names import unknown_name
from starft_hf.utils.text import markdown
from starft_hf.utils.untrusted import parse_json


# Of the JSON file; increased by changes that older versions cannot read.
_FORMAT = 1


class RobustnessReport:
    """Compares models, group by group, on one or more datasets.

    Runs of one method and one alpha that differ in their seeds are one model; its figures are means and sample
    standard deviations over them.

    Args:
        runs: at least one, all evaluated on the same datasets.
        baseline: the method that the others are compared with, if it is among the runs.
        title: title of the report.
        thumbnails: images of samples, by name of the dataset and index in it: PIL images or arrays of unsigned bytes,
            `(H, W, 3)`. Only those of the `mistakes` in the results are used.
        curve_axes: names of the two accuracies of the WiSE-FT curves, of the average and of the worst group.
        about: facts by name, such as {"model": "openai/clip-vit-base-patch16"}, which the report begins with.
        audits: what `AuditResult.as_dict` gives for some of the models, by any names.

    Raises:
        ValueError: if there are no runs, two of them are the same, they were not evaluated on the same data, or
            `thumbnails` names a dataset that none was evaluated on.
    """

    def __init__(
        self,
        runs: Iterable[Run],
        baseline: str = "zero-shot",
        title: str = "Robustness of fine-tuned models",
        thumbnails: Mapping[str, Mapping[int, Any]] | None = None,
        curve_axes: tuple[str, str] = ("average", "worst group"),
        about: Mapping[str, str] | None = None,
        audits: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self.runs = tuple(runs)
        self.baseline = baseline
        self.title = title
        self.thumbnails = dict(thumbnails or {})
        self.curve_axes = curve_axes
        self.about = dict(about or {})
        self.audits = dict(audits or {})
        check_runs(self.runs)
        for dataset in self.thumbnails:
            if dataset not in self.runs[0].results:
                raise ValueError(f"thumbnails: {unknown_name('dataset', dataset, self.runs[0].results)}")
        self.entries = entries_of(self.runs, baseline)
        self.sections, self.retrieval = sections_of(self.entries), retrieval_sections_of(self.entries)

    @property
    def rows(self) -> list[Row]:
        """A row per dataset and model, the baseline first."""
        return [row for section in self.sections for row in section.rows]

    @property
    def findings(self) -> list[Finding]:
        """What happened to the worst group and the average of every dataset, in plain text."""
        found = [finding_of(section) for section in self.sections]
        return found + [retrieval_finding(section) for section in self.retrieval]

    def as_markdown(self) -> str:
        """The sentences and tables in Markdown."""
        parts = [f"# {markdown(self.title)}"]
        parts += [markdown(f"{finding.lead} {finding.remarks}") for finding in self.findings]
        parts.append("; ".join(f"{markdown(name)}: {markdown(text)}" for name, text in self.about.items()))
        spread = "In %, changes in percentage points; mean \u00b1 sample standard deviation over seeds."
        if self.sections:
            parts += [
                f"{spread} Gap: average minus worst group. ECE: expected calibration error.",
                Table.of([DATASET, MODEL, SEEDS, *measures(self.sections)], self.sections).as_markdown(),
            ]
        parts.append("\n".join(f"- {markdown(name)}: {markdown(text)}" for name, text in explained(self.entries)))
        for section in self.sections:
            parts += [f"## Groups of {markdown(section.dataset)}", section.cut, Table.of_groups(section).as_markdown()]
        if self.retrieval:
            table = Table.of(retrieval_columns_of(self.retrieval), self.retrieval)
            parts += ["## Retrieval", f"{spread} {RECALL_NOTE}", table.as_markdown()]
        return "\n\n".join(filter(None, parts)) + "\n"

    # What a notebook shows.
    _repr_markdown_ = as_markdown

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """What `rich.print` shows: the main figures of all models, and the sentences."""
        if self.sections:
            yield Table.of([DATASET, MODEL, AVERAGE, WORST_GROUP, ECE], self.sections).as_rich("Accuracy in %")
        if self.retrieval:
            columns = retrieval_columns_of(self.retrieval, RECALLS_AT_1)
            yield Table.of(columns, self.retrieval).as_rich("Recall in %")
        for finding in self.findings:
            yield Text(f"{finding.lead} {finding.remarks}".strip())

    def as_json(self) -> str:
        """The rows, all of the runs and the thumbnails of the page in JSON. Accuracies are fractions from 0 to 1."""
        content = {
            "starft_report": _FORMAT,
            "title": self.title,
            "baseline": self.baseline,
            "curve_axes": list(self.curve_axes),
            "about": self.about,
            "rows": [asdict(row) for row in self.rows],
            "retrieval": [asdict(row) for section in self.retrieval for row in section.rows],
            "runs": [run.as_dict() for run in self.runs],
            "thumbnails": thumbnails_as_plain(self.sections, self.thumbnails),
            **({"audits": self.audits} if self.audits else {}),
        }
        return json.dumps(as_plain(content), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, thumbnails: Mapping[str, Mapping[int, Any]] | None = None) -> "RobustnessReport":
        """The report from the `text` of `as_json`, with other thumbnails if some are passed.

        Raises:
            ValueError: if `text` is anything else, or of a later version.
        """
        try:
            content = parse_json(text)
            version = content["starft_report"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{text[:40]!r}... is not a report; pass the content of a report.json") from error
        if version != _FORMAT:
            raise ValueError(f"the report has format {version!r}, this version reads {_FORMAT}; update starft_hf")
        try:
            runs = [Run.from_dict(run) for run in content["runs"]]
            if thumbnails is None:
                thumbnails = thumbnails_from_plain(content.get("thumbnails", {}))
            about = {str(name): str(text) for name, text in dict(content.get("about", {})).items()}
            shown = content["baseline"], content["title"], thumbnails, tuple(content["curve_axes"])
            return cls(runs, *shown, about, content.get("audits"))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the report cannot be read: {error!r}") from error

    def as_html(self) -> str:
        """The page, in one piece: it loads nothing from anywhere and runs no script.

        Raises:
            ImportError: if matplotlib or jinja2 is missing.
            TypeError: if a thumbnail is not an image.
        """
        shown = self.curve_axes, self.thumbnails, self.about, self.audits
        return render_page(self.title, self.sections, self.retrieval, *shown)

    def save(self, folder: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write report.json, report.md and report.html.

        Args:
            folder: created if it does not exist. Other files in it are kept.
            overwrite: whether to replace an existing report.

        Returns:
            The path of the page.

        Raises:
            FileExistsError: if there is a report and `overwrite` is not set. Nothing is written then.
            ImportError: if matplotlib or jinja2 is missing. Nothing is written then.
        """
        check_extra()
        folder = expanded(folder)
        paths = [folder / f"report.{suffix}" for suffix in ("json", "md", "html")]
        present = [path.name for path in paths if path.exists()]
        if present and not overwrite:
            raise FileExistsError(
                f"{folder} has {', '.join(present)} already; choose another folder or pass overwrite=True"
            )
        check_writable(folder, "folder")
        # All three are made before the first is written, so that a failure leaves nothing behind.
        texts = [self.as_json(), self.as_markdown(), self.as_html()]
        for path, text in zip(paths, texts, strict=True):
            write_text_atomically(path, text)
        return paths[-1]

    def save_figures(self, folder: str | PathLike[str]) -> list[tuple[str, Path]]:
        """Write the plots of worst groups and of all groups as PNG files, replacing those of the same names.

        Returns:
            What each of them shows, in words, and its path.

        Raises:
            ImportError: if matplotlib is missing.
        """
        check_extra()
        return save_figures(self.sections, expanded(folder))
