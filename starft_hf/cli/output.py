"""What commands print: JSON for programs, lines and tables for people."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
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


class LastingOutput:
    """A standard output that may be closed, as by `| head`, or full: a run must not end because of its log."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.failed = False

    def write(self, text: str) -> int:
        """Write to the stream, as long as it can be written to."""
        self._go_on(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, as long as it can be written to."""
        self._go_on(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _go_on(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError as error:
            # What the stream still holds, and what other processes print, has to go somewhere.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):
                self.failed = True
                print(f"the standard output cannot be written ({error}); going on without it", file=sys.stderr)


@contextlib.contextmanager
def lasting_output() -> Iterator[LastingOutput | None]:
    """Within, the standard output is a `LastingOutput`, unless there is none."""
    stream = sys.stdout
    if stream is None:
        yield None
        return
    lasting: Any = LastingOutput(stream)
    sys.stdout = lasting
    try:
        yield lasting
    finally:
        lasting.flush()
        sys.stdout = stream


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
