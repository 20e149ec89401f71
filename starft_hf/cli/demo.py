"""`starft demo`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from starft_hf.cli.command import check_output, given, positive_int, refuse
from starft_hf.cli.output import show


SUMMARY = "fine-tune a tiny CLIP offline, plainly and with StarFT, and compare the worst groups"
DEFAULT_OUTPUT = "starft-demo"
POOLS = ("background", "unrelated", "plain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=positive_int, default=5, help="runs per method")
    pool_help = "control: templates unrelated to the background, or the plain captions themselves"
    parser.add_argument("--pool", choices=POOLS, default="background", help=pool_help)
    parser.add_argument("--no_correlation", action="store_true", help="control: both backgrounds equally often")
    parser.add_argument("--model", type=Path, help="a model made by `python -m starft_hf.demo.pretrain`")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="split to evaluate on")
    parser.add_argument("--reg_weight", type=float, help="weight of the regularizers (default: 30)")
    parser.add_argument("--output", type=Path, help=f"an empty or new folder (default: a new {DEFAULT_OUTPUT})")
    parser.add_argument("--workers", type=positive_int, default=2, help="processes")


def run(options: argparse.Namespace) -> None:
    from starft_hf.utils.files import unused_folder

    if options.quick:
        refuse(options, ["seeds"], "--quick runs one seed")
    output = options.output or unused_folder(DEFAULT_OUTPUT)
    check_output(output)
    if options.model is not None and not (options.model / "config.json").is_file():
        make = f"python -m starft_hf.demo.pretrain --output {options.model}"
        raise argparse.ArgumentTypeError(f"--model {options.model} has no config.json; make a model with `{make}`")
    from rich.console import Console

    from starft_hf.demo.command import demo
    from starft_hf.demo.experiment import Setting

    settings = given(options, "pool", "split", "reg_weight")
    if options.model is not None:
        settings["model"] = str(options.model)
    if options.no_correlation:
        settings["correlation"] = 0.5
    report = demo(Setting(**settings), 1 if options.quick else options.seeds, output, Console(), options.workers)
    show(options, {"output": str(output), "rows": [asdict(row) for row in report.rows]})
