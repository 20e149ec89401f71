"""`starft report`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starft_hf.cli.command import given
from starft_hf.cli.output import show
from starft_hf.utils.files import check_writable


SUMMARY = "combine the runs of several report.json on one page"

# Of what `starft audit` writes, what the page shows.
_OF_AN_AUDIT = {"average", "class_names", "correlates", "groups", "score", "sensitivity", "start", "worst_group"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", type=Path, help="report.json files, or folders with one")
    parser.add_argument("--output", type=Path, required=True, help="a folder without a report")
    parser.add_argument("--baseline", default="zero-shot", help="the method to compare with")
    names_help = "a name for each, the same one for seeds of one model; default: their folders'"
    parser.add_argument("--names", nargs="+", help=names_help)
    parser.add_argument("--title", help="title of the page")


def _audit_beside(file: Path) -> dict[str, Any] | None:
    """The audit in the folder of a report, or in its folder "audit", if there is one."""
    from starft_hf.utils.untrusted import read_json

    for path in (file.parent / "audit" / "audit.json", file.parent / "audit.json"):
        if path.is_file():
            content: dict[str, Any] = read_json(path)
            if not isinstance(content, dict) or not content.keys() >= _OF_AN_AUDIT:
                raise argparse.ArgumentTypeError(f"{path} is not what `starft audit --output` wrote")
            return content
    return None


def run(options: argparse.Namespace) -> None:
    from starft_hf import RobustnessReport
    from starft_hf.report.combining import combined, names_of_files

    check_writable(options.output, "--output")
    files = [path / "report.json" if path.is_dir() else path for path in options.reports]
    if len(set(files)) < len(files):
        raise argparse.ArgumentTypeError("a report was passed twice; pass each once")
    for file in files:
        if not file.is_file():
            raise argparse.ArgumentTypeError(f"there is no {file}; pass what `starft train` or `compare` wrote")
    names = options.names or names_of_files(files)
    if len(names) != len(files):
        raise argparse.ArgumentTypeError(f"--names has {len(names)} names for {len(files)} reports; pass one for each")
    reports = [RobustnessReport.from_json(file.read_text("utf-8")) for file in files]
    runs = combined([(name, report.runs) for name, report in zip(names, reports, strict=True)], options.baseline)
    thumbnails: dict[str, dict[int, Any]] = {}
    for report in reports:
        for dataset, images in report.thumbnails.items():
            thumbnails.setdefault(dataset, {}).update(images)
    audits = {name: found for name, file in zip(names, files, strict=True) if (found := _audit_beside(file))}
    report = RobustnessReport(runs, thumbnails=thumbnails, audits=audits, **given(options, "baseline", "title"))
    page = report.save(options.output)
    content = {"report": str(page), "rows": [asdict(row) for row in report.rows]}
    show(options, content, report, f"Written to {page}.")
