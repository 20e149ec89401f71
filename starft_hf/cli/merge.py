"""`starft merge`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import add_trust, check_output, check_sources
from starft_hf.cli.output import show


SUMMARY = "merge an adapter into its model and save a plain checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="a Hub id or a folder with an adapter")
    parser.add_argument("output", type=Path, help="an empty or new folder")
    parser.add_argument("--base", help="the adapter's base model, if it is not the one that the adapter names")
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    check_output(options.output, "output")
    check_sources(options, "adapter", "base")
    from starft_hf.weights.merging import merge_checkpoint

    merge_checkpoint(options.adapter, options.output, base=options.base, trust_remote_code=options.trust_remote_code)
    show(options, {"output": str(options.output)}, f"Written to {options.output}.")
