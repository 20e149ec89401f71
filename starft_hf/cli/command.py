"""What commands share.

A command is a module of this folder, named in `starft_hf.cli.main.COMMANDS`, with three names:

- `SUMMARY`: one line for `starft --help`.
- `add_arguments(parser)`: adds its arguments to a `CommandParser`. Commands whose arguments include the fields of
  `StarFTConfig` have `make_parser(prog)` instead. `--json` and `--debug` are added to all.
- `run(options)`: runs it and returns the exit code, None for 0; raises `argparse.ArgumentTypeError` for wrong use.
  `options.command_line` is the list that was parsed, the command first.

Its top level imports nothing heavy, because `starft --help` imports all commands.
"""

import argparse
import sys
from pathlib import Path
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A parser whose options are spelled with dashes or underscores, as those of `StarFTConfig` are."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_dashes(text) for text in args], namespace)


def _with_dashes(text: str) -> str:
    name, equals, value = text.partition("=")
    return name.replace("_", "-") + equals + value if text.startswith("--") else text


def positive_int(text: str) -> int:
    """The type of an option that takes a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values of options under their names, without those that were not passed and have no default."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def check_output(folder: Path, flag: str = "--output", instead: str = "") -> None:
    """Check that writing into a folder overwrites nothing; `instead` is what else than another folder would help."""
    from starft_hf.utils.files import is_free

    if not is_free(folder):
        raise argparse.ArgumentTypeError(
            f"{flag} {folder} is not an empty folder, and nothing is overwritten; choose another{instead}"
        )
