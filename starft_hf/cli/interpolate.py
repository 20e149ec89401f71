"""`starft interpolate`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import Command


class InterpolateCommand(Command):
    """Mixes the weights of two checkpoints on disk."""

    name = "interpolate"
    summary = "mix the weights of two checkpoints, as in WiSE-FT"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("model_a", help="a Hub id or a folder; usually the zero-shot model")
        parser.add_argument("model_b", help="a Hub id or a folder; usually the fine-tuned model")
        parser.add_argument("output", type=Path, help="an empty or new folder")
        parser.add_argument("--alpha", type=float, default=0.5, help="share of the second model (default: 0.5)")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf.cli.output import print_written
        from starft_hf.hub.classifier import local_folder
        from starft_hf.utils.files import check_free
        from starft_hf.weights.interpolation import check_alpha
        from starft_hf.weights.soups import interpolate_checkpoints

        try:
            check_alpha(options.alpha)
            check_free(options.output)
        except (ValueError, FileExistsError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        model_a, model_b = (local_folder(model) for model in (options.model_a, options.model_b))
        interpolate_checkpoints(model_a, model_b, options.alpha, options.output)
        print_written(options.output, as_json=options.json)
