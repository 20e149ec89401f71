"""`starft demo`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from starft_hf.cli.command import Command, positive_int
from starft_hf.utils.files import is_free, unused_folder


DEFAULT_OUTPUT = "starft-demo"
POOLS = ("background", "unrelated", "plain")


class DemoCommand(Command):
    """Compares StarFT with plain fine-tuning in a small world that comes with the package."""

    name = "demo"
    summary = "fine-tune a tiny CLIP offline, plainly and with StarFT, and compare the worst groups"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("--quick", action="store_true", help="one seed")
        parser.add_argument("--seeds", type=positive_int, default=5, help="runs per method (default: 5)")
        parser.add_argument(
            "--pool",
            choices=POOLS,
            default="background",
            help="control: templates that have nothing to do with the background, or the plain captions themselves",
        )
        parser.add_argument(
            "--no-correlation", action="store_true", help="control: both backgrounds alike in the training images"
        )
        parser.add_argument("--model", type=Path, help="a model that `python -m starft_hf.demo.pretrain` has made")
        parser.add_argument("--split", choices=("test", "validation"), default="test", help="what is scored")
        parser.add_argument("--reg-weight", type=float, help="weight of the regularizers (default: 30)")
        parser.add_argument(
            "--output", type=Path, help=f"an empty or new folder (default: {DEFAULT_OUTPUT}, or the next that is free)"
        )
        parser.add_argument("--workers", type=positive_int, default=2, help="processes (default: 2)")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        output = options.output or unused_folder(DEFAULT_OUTPUT)
        if not is_free(output):
            raise argparse.ArgumentTypeError(
                f"--output {output} is not an empty folder; choose another, nothing is overwritten"
            )
        if options.model is not None and not (options.model / "config.json").is_file():
            raise argparse.ArgumentTypeError(
                f"--model {options.model} holds no config.json; make a model with "
                f"`python -m starft_hf.demo.pretrain --output {options.model}`"
            )
        from rich.console import Console

        from starft_hf.cli.output import print_json
        from starft_hf.demo.command import demo
        from starft_hf.demo.experiment import Setting

        changes = {"model": options.model and str(options.model), "reg_weight": options.reg_weight}
        setting = Setting(
            pool=options.pool,
            split=options.split,
            correlation=0.5 if options.no_correlation else Setting.correlation,
            **{name: value for name, value in changes.items() if value is not None},
        )
        report = demo(setting, 1 if options.quick else options.seeds, output, Console(), options.workers)
        if options.json:
            print_json({"output": str(output), "rows": [asdict(row) for row in report.rows]})
