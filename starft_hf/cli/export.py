"""`starft export`."""

import argparse
from pathlib import Path

from starft_hf.cli.command import add_trust, check_output, check_sources, given, read_class_names
from starft_hf.cli.data import CLASS_NAMES_HELP
from starft_hf.cli.output import show


SUMMARY = "write a model as ONNX, with its classes and its preprocessing, for programs without PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hub id or a folder; its linear head is used if it has one")
    parser.add_argument("--output_dir", type=Path, required=True, help="an empty or new folder")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("fp32", "fp16", "int8"),
        default=["fp32"],
        help="of the weights; each gets its own files (default: fp32)",
    )
    parser.add_argument("--class_names", nargs="+", help=f"{CLASS_NAMES_HELP}; default: those of the model's own run")
    parser.add_argument("--templates", nargs="+", help="prompts with {} for the class (default: those of the run)")
    parser.add_argument("--base", help="base model of an adapter (default: the one that it names)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    if not options.overwrite:
        check_output(options.output_dir, "--output_dir", " or, for an earlier export, pass --overwrite")
    check_sources(options, "model", "base")
    options.class_names = read_class_names(options.class_names)
    from starft_hf import export

    settings = given(options, "dtype", "class_names", "templates", "base", "overwrite", "trust_remote_code")
    result = export(options.model, options.output_dir, **settings)
    lines = [
        f"{name}: {size / 2**20:,.1f} MiB" + (f", within {worst:.1e} of PyTorch" if worst is not None else "")
        for name, size in result.files.items()
        for worst in [result.max_difference.get(name)]
    ]
    show(options, result.as_dict(), *lines, f"Written to {options.output_dir}.")
