"""`starft accelerate-config`."""

import argparse

from starft_hf.cli.command import Command
from starft_hf.cli.launch import config_file


class AccelerateConfigCommand(Command):
    """Prints nothing but a path: `accelerate launch --config_file "$(starft accelerate-config fsdp2)" train.py`."""

    name = "accelerate-config"
    summary = "print the path of a configuration for `accelerate launch`"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("name", type=config_file, help="ddp, fsdp2 or two_machines")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf.cli.output import print_json

        if options.json:
            print_json({"name": options.name.stem, "path": str(options.name)})
        else:
            print(options.name)
