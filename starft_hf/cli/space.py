"""`starft space`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import Command


class SpaceCommand(Command):
    """Writes a Space and runs it here."""

    name = "space"
    summary = "a page that compares models on an image: written to a folder, and run from it"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("folder", type=Path, help="of a Space; a new one is written where --model names models")
        parser.add_argument(
            "--model", action="append", metavar="NAME=MODEL", help="a column: its heading, and a folder or Hub id"
        )
        parser.add_argument("--class-names", nargs="+", help="default: those of the first model that knows some")
        parser.add_argument("--title", help="of the page")
        parser.add_argument("--report", type=Path, help="report.html for the second tab")
        parser.add_argument("--port", type=int, help="default: the first that is free from 7860")
        parser.add_argument("--no-run", action="store_true", help="only write it")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf.cli.output import print_written
        from starft_hf.hub.space import SETTINGS_FILE, SpaceSettings, build, write_space

        if options.model is not None:
            pairs = [pair.partition("=") for pair in options.model]
            if not all(name and model for name, _, model in pairs):
                raise argparse.ArgumentTypeError("--model takes NAME=MODEL, such as StarFT=you/owls")
            models = {name: str(Path(model).resolve()) if Path(model).is_dir() else model for name, _, model in pairs}
            changes = {"title": options.title} if options.title else {}
            write_space(options.folder, SpaceSettings(models, options.class_names, **changes), options.report)
            print_written(options.folder, as_json=options.json)
        elif not (options.folder / SETTINGS_FILE).is_file():
            raise argparse.ArgumentTypeError(f"{options.folder} has no {SETTINGS_FILE}; name models with --model")
        if not options.no_run:
            build(options.folder).launch(server_port=options.port)
