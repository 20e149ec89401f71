"""`RobustnessReport`: runs in, tables and a page out."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from starft_hf.report.data import Run, as_plain, check_runs
from starft_hf.report.figures import save_figures
from starft_hf.report.markdown import as_markdown
from starft_hf.report.page import check_extra, render_page
from starft_hf.report.table import Row, entries_of, rows_of
from starft_hf.report.words import Finding, findings_of
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.names import unknown_name


BASELINE = "zero-shot"

_TITLE = "Robustness of fine-tuned models"
_AXES = ("in distribution", "out of distribution")

# Of the JSON file; a change that older versions cannot read counts it up.
_FORMAT = 1


class RobustnessReport:
    """Compares models, group by group, on one or more data sets.

    Runs of one method and one share of weights that differ in their seeds are one model; its figures are means and
    sample standard deviations over them.

    Args:
        runs: at least one, all evaluated on the same data sets.
        baseline: the method that the others are compared with, where it is among the runs.
        title: of the report.
        thumbnails: pictures of samples, by name of the data set and index in it: PIL images or arrays of unsigned
            bytes, `(H, W, 3)`. Needed are those of the `mistakes` of the results; others are not looked at.
        curve_axes: what the two accuracies of the WiSE-FT curves are, in and out of distribution.

    Raises:
        ValueError: if there are no runs, two of them are the same, they were not evaluated on the same data, or
            `thumbnails` names a data set that none was evaluated on.
    """

    def __init__(
        self,
        runs: Iterable[Run],
        baseline: str = BASELINE,
        title: str = _TITLE,
        thumbnails: Mapping[str, Mapping[int, Any]] | None = None,
        curve_axes: tuple[str, str] = _AXES,
    ):
        self.runs = tuple(runs)
        self.baseline = baseline
        self.title = title
        self.thumbnails = dict(thumbnails or {})
        self.curve_axes = curve_axes
        check_runs(self.runs)
        for dataset in self.thumbnails:
            if dataset not in self.runs[0].results:
                raise ValueError(f"thumbnails: {unknown_name('data set', dataset, self.runs[0].results)}")
        self._entries = entries_of(self.runs, baseline)

    @property
    def rows(self) -> list[Row]:
        """The table: for every data set a row per model, the baseline first."""
        return rows_of(self._entries, self.baseline)

    @property
    def findings(self) -> list[Finding]:
        """What happened, in plain text: for every data set what became of its worst group and of the average."""
        return findings_of(self.rows, self.baseline)

    def as_markdown(self) -> str:
        """The sentences and tables in Markdown."""
        return as_markdown(self.title, self.findings, self._entries, self.rows, self.baseline)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return self.as_markdown()

    def as_json(self) -> str:
        """The table and all of the runs, but for the pictures, in JSON. Accuracies are shares from 0 to 1."""
        content = {
            "starft_report": _FORMAT,
            "title": self.title,
            "baseline": self.baseline,
            "curve_axes": list(self.curve_axes),
            "rows": [asdict(row) for row in self.rows],
            "runs": [run.as_dict() for run in self.runs],
        }
        return json.dumps(as_plain(content), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, thumbnails: Mapping[str, Mapping[int, Any]] | None = None) -> "RobustnessReport":
        """The report that `as_json` made `text` of.

        Args:
            text: in JSON.
            thumbnails: as in the constructor; the JSON has no pictures.

        Raises:
            ValueError: if `text` is anything else, or of a later version.
        """
        try:
            content = json.loads(text)
            version = content["starft_report"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{text[:40]!r}... is not a report; pass the content of a report.json") from error
        if version != _FORMAT:
            raise ValueError(f"the report has format {version!r}, this version reads {_FORMAT}; update starft_hf")
        try:
            runs = [Run.from_dict(run) for run in content["runs"]]
            baseline, title, axes = content["baseline"], content["title"], tuple(content["curve_axes"])
            return cls(runs, baseline=baseline, title=title, thumbnails=thumbnails, curve_axes=axes)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the report cannot be read: {error!r}") from error

    def as_html(self) -> str:
        """The page, in one piece: it loads nothing from anywhere and runs no script.

        Raises:
            ImportError: if matplotlib or jinja2 is missing.
            TypeError: if a thumbnail is no picture.
        """
        return render_page(
            self.title,
            self.findings,
            self._entries,
            self.rows,
            baseline=self.baseline,
            curve_axes=self.curve_axes,
            thumbnails=self.thumbnails,
        )

    def save(self, folder: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write report.json, report.md and report.html.

        Args:
            folder: made where it does not exist. Other files in it are left alone.
            overwrite: whether a report that is there may be replaced.

        Returns:
            The path of the page.

        Raises:
            FileExistsError: if there is a report and `overwrite` is not set. Nothing is written then.
            ImportError: if matplotlib or jinja2 is missing. Nothing is written then.
        """
        check_extra()
        paths = [Path(folder) / f"report.{suffix}" for suffix in ("json", "md", "html")]
        present = [path.name for path in paths if path.exists()]
        if present and not overwrite:
            raise FileExistsError(
                f"{folder} has {', '.join(present)} already; choose another folder or pass overwrite=True"
            )
        # All three before the first is written, so that a failure leaves nothing behind.
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
        return save_figures(self._entries, self.rows, self.baseline, Path(folder))
