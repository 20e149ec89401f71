"""`starft demo`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from starft_hf.cli.command import CommandParser, check_output, positive_int
from starft_hf.cli.output import show


SUMMARY = "fine-tune a tiny CLIP offline, plainly and with StarFT, and compare the worst groups"
DEFAULT_OUTPUT = "starft-demo"
POOLS = ("background", "unrelated", "plain")


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(prog=prog, description=SUMMARY)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=positive_int, default=5, help="runs per method (default: 5)")
    parser.add_argument(
        "--pool",
        choices=POOLS,
        default="background",
        help="control: templates unrelated to the background, or the plain captions themselves",
    )
    parser.add_argument(
        "--no-correlation", action="store_true", help="control: both backgrounds equally often in the training images"
    )
    parser.add_argument("--model", type=Path, help="a model made by `python -m starft_hf.demo.pretrain`")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="split to evaluate on")
    parser.add_argument("--reg-weight", type=float, help="weight of the regularizers (default: 30)")
    parser.add_argument(
        "--output", type=Path, help=f"an empty or new folder (default: {DEFAULT_OUTPUT}, or the next free name)"
    )
    parser.add_argument("--workers", type=positive_int, default=2, help="processes (default: 2)")
    return parser


def run(options: argparse.Namespace) -> None:
    from starft_hf.utils.files import unused_folder

    output = options.output or unused_folder(DEFAULT_OUTPUT)
    check_output(output)
    if options.model is not None and not (options.model / "config.json").is_file():
        raise argparse.ArgumentTypeError(
            f"--model {options.model} has no config.json; make a model with "
            f"`python -m starft_hf.demo.pretrain --output {options.model}`"
        )
    from rich.console import Console

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
    show(options, {"output": str(output), "rows": [asdict(row) for row in report.rows]})
