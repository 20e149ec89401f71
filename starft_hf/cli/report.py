"""`starft report`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from starft_hf.cli.command import Command


class ReportCommand(Command):
    """Puts the runs of several reports onto one page."""

    name = "report"
    summary = "put the runs of several report.json onto one page"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("reports", nargs="+", type=Path, help="report.json files, or folders with one")
        parser.add_argument("--output", type=Path, required=True, help="a folder without a report")
        parser.add_argument("--baseline", default="zero-shot", help="the method to compare with (default: zero-shot)")
        parser.add_argument("--title", help="of the page")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf import RobustnessReport
        from starft_hf.cli.output import print_json, print_report
        from starft_hf.report import Run

        runs: list[Run] = []
        for path in options.reports:
            file = path / "report.json" if path.is_dir() else path
            if not file.is_file():
                raise argparse.ArgumentTypeError(f"there is no {file}; pass what `starft train` or `compare` wrote")
            # The zero-shot model is in every report, and the same in all.
            runs += [run for run in RobustnessReport.from_json(file.read_text("utf-8")).runs if run not in runs]
        title = {"title": options.title} if options.title else {}
        report = RobustnessReport(runs, baseline=options.baseline, **title)
        page = report.save(options.output)
        if options.json:
            print_json({"report": str(page), "rows": [asdict(row) for row in report.rows]})
        else:
            print_report(report)
            print(f"Written to {page}.")
