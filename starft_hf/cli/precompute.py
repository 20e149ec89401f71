"""`starft precompute`."""

import argparse
from dataclasses import asdict

from starft_hf.cli.arguments import required, settings_of, training_parser
from starft_hf.cli.command import Command


class PrecomputeCommand(Command):
    """Fills the reference's cache, so that training on expensive machines begins at once."""

    name = "precompute"
    summary = "fill the cache of the frozen reference for a later `starft train` with the same settings"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        return training_parser(prog, self.summary, defaults={"output_dir": "starft-output", "report_to": "none"})

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf.cli.data import load_training_data, make_trainer
        from starft_hf.cli.output import print_json

        required(options, "model", "dataset")
        args = settings_of(options)
        train, _ = load_training_data(options)
        reference = make_trainer(options, args, train, {}).reference
        if reference is None:
            raise argparse.ArgumentTypeError("--regularizer none needs no reference, so there is nothing to compute")
        reference.prepare(args.device)
        info = reference.info
        if options.json:
            print_json(asdict(info))
        elif info.rows:
            print(f"{info.kind}: {info.rows:,} embeddings, {info.bytes / 2**20:,.1f} MiB, in {info.where}")
        else:
            print(f"{info.kind}: nothing is remembered with these settings")
