"""`starft report`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from starft_hf.cli.command import given
from starft_hf.cli.output import show


SUMMARY = "combine the runs of several report.json on one page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", type=Path, help="report.json files, or folders with one")
    parser.add_argument("--output", type=Path, required=True, help="a folder without a report")
    parser.add_argument("--baseline", default="zero-shot", help="the method to compare with")
    parser.add_argument("--title", help="title of the page")


def run(options: argparse.Namespace) -> None:
    from starft_hf import RobustnessReport
    from starft_hf.report import Run

    runs: list[Run] = []
    for path in options.reports:
        file = path / "report.json" if path.is_dir() else path
        if not file.is_file():
            raise argparse.ArgumentTypeError(f"there is no {file}; pass what `starft train` or `compare` wrote")
        # The zero-shot model is in every report, and the same in all.
        runs += [run for run in RobustnessReport.from_json(file.read_text("utf-8")).runs if run not in runs]
    report = RobustnessReport(runs, **given(options, "baseline", "title"))
    page = report.save(options.output)
    content = {"report": str(page), "rows": [asdict(row) for row in report.rows]}
    show(options, content, report, f"Written to {page}.")
