"""`starft merge`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import Command


class MergeCommand(Command):
    """Makes a plain checkpoint out of an adapter and its model."""

    name = "merge"
    summary = "merge an adapter into its model, for a checkpoint like any other"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("adapter", help="a Hub id or a folder with an adapter")
        parser.add_argument("output", type=Path, help="an empty or new folder")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf.cli.output import print_written
        from starft_hf.hub.classifier import load
        from starft_hf.models.adapters import merge_and_save
        from starft_hf.utils.files import folder_in_place_of, is_free

        if not is_free(options.output):
            raise argparse.ArgumentTypeError(f"{options.output} is not an empty folder; choose another")
        loaded = load(options.adapter)
        with folder_in_place_of(options.output) as folder:
            merge_and_save(loaded.model, loaded.processor, folder)
        print_written(options.output, as_json=options.json)
