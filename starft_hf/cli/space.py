"""`starft space`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import CommandParser
from starft_hf.cli.output import show


SUMMARY = "write and run a Space: a page that compares models on an image"


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(prog=prog, description=SUMMARY)
    parser.add_argument("folder", type=Path, help="folder of a Space; --model writes a new one")
    parser.add_argument(
        "--model", action="append", metavar="NAME=MODEL", help="a column: its heading, and a folder or Hub id"
    )
    parser.add_argument("--class-names", nargs="+", help="default: those of the first model that has some")
    parser.add_argument("--title", help="title of the page")
    parser.add_argument("--report", type=Path, help="report.html for the second tab")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--no-run", action="store_true", help="write it without running it")
    return parser


def run(options: argparse.Namespace) -> None:
    from starft_hf.hub.space import SETTINGS_FILE, SpaceSettings, build, write_space

    if options.model is not None:
        pairs = [pair.partition("=") for pair in options.model]
        if not all(name and model for name, _, model in pairs):
            raise argparse.ArgumentTypeError("--model takes NAME=MODEL, such as StarFT=you/owls")
        models = {name: str(Path(model).resolve()) if Path(model).is_dir() else model for name, _, model in pairs}
        title = {"title": options.title} if options.title else {}
        write_space(options.folder, SpaceSettings(models, options.class_names, **title), options.report)
    elif not (options.folder / SETTINGS_FILE).is_file():
        raise argparse.ArgumentTypeError(f"{options.folder} has no {SETTINGS_FILE}; name models with --model")
    written = [f"Written to {options.folder}."] if options.model is not None else []
    show(options, {"output": str(options.folder)}, *written)
    if not options.no_run:
        build(options.folder).launch(server_port=options.port)
