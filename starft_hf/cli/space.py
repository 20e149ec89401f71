"""`starft space`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import given, read_class_names, refuse
from starft_hf.cli.data import CLASS_NAMES_HELP
from starft_hf.cli.output import show


SUMMARY = "write and run a Space: a page that compares models on an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a Space; --model writes a new one")
    model_help = "a column: its heading, and a folder or Hub id"
    parser.add_argument("--model", action="append", metavar="NAME=MODEL", help=model_help)
    parser.add_argument("--class_names", nargs="+", help=f"{CLASS_NAMES_HELP}; default: the first model's")
    parser.add_argument("--title", help="title of the page")
    parser.add_argument("--report", type=Path, help="report.html for the second tab")
    parser.add_argument("--examples", type=Path, nargs="+", help="files of images for visitors to click on")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--no_run", action="store_true", help="write it without running it")


def run(options: argparse.Namespace) -> None:
    from starft_hf.hub.space import SETTINGS_FILE, SpaceSettings, build, write_space
    from starft_hf.utils.files import local_or_hub

    written = []
    if options.no_run:
        refuse(options, ["port"], "--no_run serves nothing")
    options.class_names = read_class_names(options.class_names)
    if options.model is not None:
        pairs = [pair.partition("=") for pair in options.model]
        if not all(name and model for name, _, model in pairs):
            raise argparse.ArgumentTypeError("--model takes NAME=MODEL, such as StarFT=you/owls")
        for _, _, model in pairs:
            local_or_hub(model, "--model")
        models = {name: model for name, _, model in pairs}
        settings = SpaceSettings(models, **given(options, "class_names", "title"))
        write_space(options.folder, settings, options.report, options.examples or ())
        written = [f"Written to {options.folder}."]
    elif not (options.folder / SETTINGS_FILE).is_file():
        raise argparse.ArgumentTypeError(f"{options.folder} has no {SETTINGS_FILE}; name models with --model")
    else:
        refuse(
            options, ["class_names", "title", "report", "examples"], f"{options.folder} is not written without --model"
        )
    show(options, {"output": str(options.folder)}, *written)
    if not options.no_run:
        build(options.folder).launch(server_port=options.port)
