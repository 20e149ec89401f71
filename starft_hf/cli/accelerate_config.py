"""`starft accelerate-config`: `accelerate launch --config_file "$(starft accelerate-config fsdp2)" train.py`."""

import argparse

from starft_hf.cli.command import CommandParser
from starft_hf.cli.launch import config_file
from starft_hf.cli.output import show


SUMMARY = "print the path of a configuration for `accelerate launch`"


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(prog=prog, description=SUMMARY)
    parser.add_argument("name", type=config_file, help="ddp, fsdp2 or two_machines")
    return parser


def run(options: argparse.Namespace) -> None:
    show(options, {"name": options.name.stem, "path": str(options.name)}, str(options.name))
