"""Finds the command, runs it and turns errors into one line and an exit code."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

import starft_hf
from starft_hf.cli.accelerate_config import AccelerateConfigCommand
from starft_hf.cli.command import Command
from starft_hf.cli.compare import CompareCommand
from starft_hf.cli.demo import DemoCommand
from starft_hf.cli.discover import DiscoverCommand
from starft_hf.cli.evaluate import EvaluateCommand
from starft_hf.cli.generate_pool import GeneratePoolCommand
from starft_hf.cli.interpolate import InterpolateCommand
from starft_hf.cli.launch import launched
from starft_hf.cli.merge import MergeCommand
from starft_hf.cli.output import nothing_but_json
from starft_hf.cli.precompute import PrecomputeCommand
from starft_hf.cli.push import PushCommand
from starft_hf.cli.report import ReportCommand
from starft_hf.cli.space import SpaceCommand
from starft_hf.cli.train import TrainCommand


COMMANDS: tuple[type[Command], ...] = (
    DemoCommand,
    TrainCommand,
    EvaluateCommand,
    CompareCommand,
    InterpolateCommand,
    DiscoverCommand,
    GeneratePoolCommand,
    PrecomputeCommand,
    MergeCommand,
    PushCommand,
    ReportCommand,
    SpaceCommand,
    AccelerateConfigCommand,
)

FAILED = 1
WRONG_USE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for wrong use, 75 for a training that was stopped by SIGTERM and
        goes on with `--resume`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {command.name: command for command in COMMANDS}
    if not arguments or arguments[0] not in commands:
        _overview().parse_args(arguments)
    command = commands[arguments[0]]()
    # Only now, because the arguments of some commands are those of `TrainingArguments`, which takes seconds to import.
    parser = command.make_parser(prog=f"starft {command.name}")
    parser.add_argument("--json", action="store_true", help="print the outcome as one line of JSON, for machines")
    parser.add_argument("--debug", action="store_true", dest="traceback", help="show the traceback of an error")
    options = parser.parse_args(arguments[1:], argparse.Namespace(command_line=arguments))
    try:
        with nothing_but_json() if options.json else contextlib.nullcontext():
            code = command.run(options) or 0
        if launched():
            from starft_hf.utils.collectives import leave

            leave()
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


def _overview() -> argparse.ArgumentParser:
    """The parser of everything that is no command: help, version and errors."""
    parser = argparse.ArgumentParser(prog="starft", description="Robust fine-tuning of CLIP-like models with StarFT.")
    parser.add_argument("--version", action="version", version=starft_hf.__version__)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparsers.add_parser(command.name, help=command.summary)
    return parser
