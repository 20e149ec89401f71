"""`starft accelerate-config`: `accelerate launch --config_file "$(starft accelerate-config fsdp2)" train.py`."""

import argparse

from starft_hf.cli.launch import config_file
from starft_hf.cli.output import show


SUMMARY = "print the path of a configuration for `accelerate launch`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=config_file, help="ddp, fsdp2 or two_machines")


def run(options: argparse.Namespace) -> None:
    show(options, {"name": options.name.stem, "path": str(options.name)}, str(options.name))
