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

    @staticmethod
    @abstractmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    @abstractmethod
    def run(self, options: argparse.Namespace) -> None:
        """Do it.

        Raises:
            argparse.ArgumentTypeError: if the arguments do not go together.
        """


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
