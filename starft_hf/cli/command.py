"""What a command of the command line is."""

import argparse
from abc import ABC, abstractmethod


class Command(ABC):
    """A command. Its module imports nothing heavy: `starft --help` reads all of them.

    Attributes:
        name: what is typed.
        summary: one line for `--help`.
    """

    name: str
    summary: str

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        """The parser of the command's arguments, which commands add."""
        return argparse.ArgumentParser(prog=prog, description=self.summary)

    @abstractmethod
    def run(self, options: argparse.Namespace) -> int | None:
        """Do it; returns the exit code, None for 0.

        Args:
            options: the arguments, and under `command_line` the list they were parsed from, the command first.

        Raises:
            argparse.ArgumentTypeError: if the arguments do not go together.
        """


def add_on_bad_image(parser: argparse.ArgumentParser) -> None:
    """Add what to do about images that cannot be read."""
    parser.add_argument(
        "--on-bad-image",
        "--on_bad_image",
        choices=("raise", "skip"),
        default="raise",
        help="stop at an image that cannot be read, or leave it out (default: raise)",
    )


def positive_int(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: if it is anything else.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number
