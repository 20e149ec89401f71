"""What commands share.

A command is a module of this folder, named in `starft_hf.cli.main.COMMANDS`, with three names:

- `SUMMARY`: one line for `starft --help`.
- `add_arguments(parser)`: adds its arguments to a `CommandParser`. Commands whose arguments include the fields of
  `StarFTConfig` have `make_parser(prog)` instead. `--config`, `--json` and `--debug` are added to all.
- `run(options)`: runs it and returns the exit code, None for 0; raises `argparse.ArgumentTypeError` for wrong use.
  `options.command_line` is the list that was parsed, the command first, and `options.passed` what was passed in it.

A flag that has no effect together with the others is refused, by `refuse`, or warned of, by `warn`. Its top level
imports nothing heavy, because `starft --help` imports all commands.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starft_hf.utils.files import check_writable, expanded, is_free, local_or_hub


def positive_int(text: str) -> int:
    """The type of an option that takes a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def count(text: str) -> int:
    """The type of an option that takes a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative integer")
    return int(text)


class PoolAction(argparse.Action):
    """Takes the name, file or repository of a pool, or its templates, which are a list then, as in Python."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        names = [text for text in values if "{" not in text or os.path.exists(text)]
        if len(values) == 1 and names:
            setattr(namespace, self.dest, names[0])
            return
        if names:
            raise argparse.ArgumentError(
                self,
                f"{names[0]!r} is not a template, which has {{}} for the caption or {{class}} for the class name; "
                "pass one name, file or repository, or any number of templates",
            )
        from starft_hf.spuriosity.pool import SpuriosityPool

        try:
            SpuriosityPool(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error
        setattr(namespace, self.dest, values)


def add_pool(parser: argparse.ArgumentParser, flag: str, default: str | None, help: str = "") -> None:
    """Add a flag that takes a pool; `help` is what it says beside that."""
    text = f"pool: a built-in name, a file or a repository; or templates, such as '{{}} at night.'{help}"
    parser.add_argument(flag, action=PoolAction, nargs="+", default=default, help=text)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the flag of commands that load a model; others have it as a setting of `StarFTConfig`."""
    text = "run code that comes with a model whose classes transformers does not have; review it first"
    parser.add_argument("--trust_remote_code", action="store_true", help=text)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values of options under their names, without those that were not passed and have no default."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def refuse(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuse those of the options `names` that were passed, since they would have no effect."""
    for name in names:
        if name in options.passed:
            raise argparse.ArgumentTypeError(f"{options.passed[name]} has no effect: {why}")


def warn(options: argparse.Namespace, text: str) -> None:
    """Print a warning, on one of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"starft {options.command_line[0]}: warning: {text}", file=sys.stderr, flush=True)


def check_output(folder: Path, flag: str = "--output", instead: str = "") -> None:
    """Check that a folder can be written to and that this overwrites nothing, before there is something to lose.

    `instead` is what else than another folder would help.
    """
    if not is_free(folder):
        raise argparse.ArgumentTypeError(
            f"{flag} {folder} is not an empty folder, and nothing is overwritten; choose another{instead}"
        )
    check_writable(folder, flag)


def read_class_names(names: Any) -> Any:
    """The values of `--class_names`: names in label order, or those in a file of one per line or of JSON."""
    from starft_hf.utils.names import names_in, read_names

    if names is None:
        return None
    try:
        names = names_in([names] if isinstance(names, str) else names, "class_names")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if len(names) != 1:
        return names
    path = expanded(names[0])
    if not path.is_file():
        if path.suffix in (".txt", ".json") or len(path.parts) > 1:
            raise argparse.ArgumentTypeError(f"there is no file {names[0]} of class names")
        return names
    return read_names(path)


def check_sources(options: argparse.Namespace, *names: str) -> None:
    """Check that models and datasets that look like paths exist, before any of them is loaded; expand `~` in them."""
    for name, source in given(options, *names).items():
        local_or_hub(source, name)
        setattr(options, name, os.path.expanduser(source))
