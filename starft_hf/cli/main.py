"""Finds the command, runs it and turns errors into one line and an exit code."""

import argparse
import contextlib
import difflib
import importlib
import linecache
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import starft_hf
from starft_hf.cli.launch import launched, report_exit_code
from starft_hf.cli.messages import in_flags, warnings_in_flags
from starft_hf.cli.output import lasting_output, nothing_but_json
from starft_hf.cli.parser import CommandParser


# In the order of `starft --help`; `starft_hf.cli.command` says what the module of a command contains.
COMMANDS = (
    "demo",
    "inspect",
    "train",
    "evaluate",
    "predict",
    "compare",
    "tune",
    "interpolate",
    "repair",
    "audit",
    "discover",
    "generate-pool",
    "precompute",
    "merge",
    "export",
    "push",
    "report",
    "space",
    "accelerate-config",
    "env",
)

FAILED = 1
WRONG_USE = 2

# What the package raises for what it was given. Others are of a run that failed.
_REFUSALS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line without the program's name, by default that of the process.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for wrong use and for settings or data that are refused, 3 for a
        broken bound of an audit, 75 for a run that was stopped by SIGTERM and can be resumed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in COMMANDS:
        _overview(arguments)
    command = _module(arguments[0])
    parser = make_parser(arguments[0])
    options = parser.parse_args(arguments[1:], argparse.Namespace(command_line=arguments))
    try:
        only_json = nothing_but_json if options.json else contextlib.nullcontext
        with lasting_output() as output, only_json(), warnings_in_flags(parser):
            code = command.run(options) or 0
        if launched():
            from starft_hf.utils.collectives import destroy_process_group

            destroy_process_group()
        return code or (FAILED if output is not None and output.failed else 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    except Exception as error:
        wrong = isinstance(error, argparse.ArgumentTypeError)
        if options.traceback and not wrong:
            raise
        wrong = wrong or _is_refusal(error)
        text = in_flags(" ".join(str(error).split()), parser.flags)
        print(f"{parser.prog}: {'error' if wrong else type(error).__name__}: {text}", file=sys.stderr)
        if wrong:
            report_exit_code(WRONG_USE)
        return WRONG_USE if wrong else FAILED


def _is_refusal(error: Exception) -> bool:
    """Whether the package itself raised `error`, because of what it was given."""
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    sources = (type(error).__module__, innermost.f_globals.get("__name__", ""))
    refusals = (*_REFUSALS, TypeError) if _is_raised(error) else _REFUSALS
    return isinstance(error, refusals) and any(source.split(".")[0] == starft_hf.__name__ for source in sources)


def _is_raised(error: Exception) -> bool:
    """Whether a statement raised `error`, rather than an expression that failed."""
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    return linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")


def _module(name: str) -> Any:
    return importlib.import_module(f"starft_hf.cli.{name.replace('-', '_')}")


def make_parser(name: str) -> CommandParser:
    """The parser of a command."""
    command, prog = _module(name), f"starft {name}"
    if hasattr(command, "make_parser"):
        parser: CommandParser = command.make_parser(prog)
    else:
        parser = CommandParser(prog=prog, description=command.SUMMARY)
        command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.add_argument("--debug", action="store_true", dest="traceback", help="show the traceback of an error")
    return parser


def _overview(arguments: Sequence[str]) -> None:
    """Help, version or an error, for a command line without a command; ends the process."""
    parser = argparse.ArgumentParser(prog="starft", description="Robust fine-tuning of CLIP-like models with StarFT.")
    parser.add_argument("--version", action="version", version=starft_hf.__version__)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name in COMMANDS:
        subparsers.add_parser(name, help=_module(name).SUMMARY)
    if set(arguments) & {"-h", "--help", "--version"}:
        parser.parse_args(arguments)
    problem = f"unknown command {arguments[0]}" if arguments else "a command is missing"
    close = difflib.get_close_matches(arguments[0], COMMANDS, n=1) if arguments else []
    hint = f" Did you mean {close[0]}?" if close else ""
    parser.exit(WRONG_USE, f"starft: error: {problem}.{hint} Commands: {', '.join(COMMANDS)}\n")
