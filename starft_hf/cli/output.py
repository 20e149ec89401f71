"""What commands print: JSON for programs, lines and tables for people."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TextIO


_for_json: ContextVar[TextIO | None] = ContextVar("for_json", default=None)


@contextlib.contextmanager
def nothing_but_json() -> Iterator[None]:
    """Within, the standard output is for the JSON of `show` alone; everything else goes to the standard error."""
    token = _for_json.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _for_json.reset(token)


def show(options: argparse.Namespace, content: Any, *parts: Any) -> None:
    """Print the outcome of a command: `content` as one line of JSON with `--json`, strings and tables without it."""
    if options.json:
        print(_as_json(content), file=_for_json.get() or sys.stdout, flush=True)
        return
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            from rich.console import Console

            Console().print(part)


def _as_json(content: Any) -> str:
    try:
        return json.dumps(content, allow_nan=False)
    except (TypeError, ValueError):
        # Numbers that are not finite, or of NumPy. This import takes seconds.
        from starft_hf.report.data import as_plain

        return json.dumps(as_plain(content), allow_nan=False)
