"""Finds the command, runs it and turns errors into one line and an exit code."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import starft_hf
from starft_hf.cli.command import CommandParser
from starft_hf.cli.launch import launched
from starft_hf.cli.output import nothing_but_json


# In the order of `starft --help`; `starft_hf.cli.command` says what the module of a command contains.
COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "compare",
    "interpolate",
    "discover",
    "generate-pool",
    "precompute",
    "merge",
    "push",
    "report",
    "space",
    "accelerate-config",
)

FAILED = 1
WRONG_USE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line without the program's name, by default that of the process.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for wrong use, 75 for training that was stopped by SIGTERM and
        continues with `--resume`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in COMMANDS:
        _overview().parse_args(arguments)
    command = _module(arguments[0])
    parser = _parser(command, f"starft {arguments[0]}")
    options = parser.parse_args(arguments[1:], argparse.Namespace(command_line=arguments))
    try:
        with nothing_but_json() if options.json else contextlib.nullcontext():
            code = command.run(options) or 0
        if launched():
            from starft_hf.utils.collectives import destroy_process_group

            destroy_process_group()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    except argparse.ArgumentTypeError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return WRONG_USE
    except Exception as error:
        if options.traceback:
            raise
        print(f"{parser.prog}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED


def _module(name: str) -> Any:
    return importlib.import_module(f"starft_hf.cli.{name.replace('-', '_')}")


def _parser(command: Any, prog: str) -> argparse.ArgumentParser:
    if hasattr(command, "make_parser"):
        parser: argparse.ArgumentParser = command.make_parser(prog)
    else:
        parser = CommandParser(prog=prog, description=command.SUMMARY)
        command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as one line of JSON")
    parser.add_argument("--debug", action="store_true", dest="traceback", help="show the traceback of an error")
    return parser


def _overview() -> argparse.ArgumentParser:
    """The parser without a command: help, version and errors."""
    parser = argparse.ArgumentParser(prog="starft", description="Robust fine-tuning of CLIP-like models with StarFT.")
    parser.add_argument("--version", action="version", version=starft_hf.__version__)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        subparsers.add_parser(name, help=_module(name).SUMMARY)
    return parser
