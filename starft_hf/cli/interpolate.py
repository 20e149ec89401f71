"""`starft interpolate`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import check_output, check_sources
from starft_hf.cli.output import show


SUMMARY = "mix the weights of two checkpoints, as in WiSE-FT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_a", help="a Hub id or a folder; usually the zero-shot model")
    parser.add_argument("model_b", help="a Hub id or a folder; usually the fine-tuned model")
    parser.add_argument("output", type=Path, help="an empty or new folder")
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the second model")


def run(options: argparse.Namespace) -> None:
    from starft_hf.hub.classifier import local_folder
    from starft_hf.weights.interpolation import check_alpha
    from starft_hf.weights.soups import interpolate_checkpoints

    try:
        check_alpha(options.alpha)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    check_output(options.output, "output")
    check_sources(options, "model_a", "model_b")
    model_a, model_b = (local_folder(model) for model in (options.model_a, options.model_b))
    interpolate_checkpoints(model_a, model_b, options.alpha, options.output)
    show(options, {"output": str(options.output)}, f"Written to {options.output}.")
