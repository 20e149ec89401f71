"""Finds the command, runs it and turns errors into one line and an exit code."""

import argparse
import sys
from collections.abc import Sequence

import starft_hf
from starft_hf.cli.command import Command
from starft_hf.cli.demo import DemoCommand


COMMANDS: tuple[type[Command], ...] = (DemoCommand,)

FAILED = 1
WRONG_USE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for wrong use.
    """
    parser = argparse.ArgumentParser(prog="starft", description="Robust fine-tuning of CLIP-like models with StarFT.")
    parser.add_argument("--version", action="version", version=starft_hf.__version__)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.summary, description=command.summary)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(subparser)
        subparser.set_defaults(command=command(), parser=subparser)
    options = parser.parse_args(arguments)
    try:
        options.command.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    except argparse.ArgumentTypeError as error:
        print(f"{options.parser.prog}: error: {error}", file=sys.stderr)
        return WRONG_USE
    except Exception as error:
        if options.debug:
            raise
        print(f"{options.parser.prog}: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    return 0
