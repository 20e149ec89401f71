"""Names: how they read, and error messages for those that are not known."""

import difflib
from collections.abc import Iterable


def readable(class_name: str) -> str:
    """A class name as words: `fire_truck` is read as `fire truck`."""
    return " ".join(class_name.replace("_", " ").split())


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """A message that says what was passed, what is known and which known name comes closest."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(map(repr, known))}."
