"""Names and numbers as they are printed. Names come from users and datasets and are not trusted."""

import html
import math
import os
import re
from pathlib import PureWindowsPath


# Joiners that scripts and emoji need, although they are not printable on their own.
_JOINERS = "\u200c\u200d"

# A path from a root, a home or the current folder; not an address on the web, nor "owner/name".
_PATH = re.compile(r"(?<![\w:/\\.~])(?:file://)?(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?(?:[\\/][^\s'\"\\/,;]+)+[\\/]?")

MINUS = "\u2212"

# How far from 0 and 1 sums of fractions may end that are 0 and 1.
_ROUNDING = 1e-9


def one_line(text: str) -> str:
    """`text` on one line, without invisible characters, such as controls and changes of direction."""
    text = re.sub(r"\s+", " ", str(text)).strip()
    return "".join(char if char.isprintable() or char in _JOINERS else "\ufffd" for char in text)


def as_utf8(text: str) -> str:
    """`text` with backslash escapes for what UTF-8 cannot hold, such as bytes in the names of files."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def markdown(text: str) -> str:
    """`text` on one line, escaped for Markdown, also within a table."""
    text = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def one_decimal(fraction: float) -> str:
    """A fraction, or a difference of fractions, in percent with one decimal, without the percent sign."""
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "nan"


def percent(fraction: float) -> str:
    """A fraction as `one_decimal` has it, but "100.0" and "0.0" only for all and none: 4 of 10,000 are 0.1."""
    if _ROUNDING < fraction < 1 - _ROUNDING:
        return one_decimal(min(max(fraction, 0.001), 0.999))
    return one_decimal(fraction)


def points(change: float) -> str:
    """A change of a fraction in percentage points, with its sign."""
    if not math.isfinite(change):
        return "nan"
    size = one_decimal(abs(change))
    sign = "" if float(size) == 0 else "+" if change > 0 else MINUS
    return sign + size


def and_then(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b, and c`; two parts get a comma if one of them contains "and"."""
    if len(parts) == 2 and not any(" and " in part for part in parts):
        return " and ".join(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def without_paths(text: str) -> str:
    """`text` with paths replaced by their last parts, since a path names a machine or a person."""
    if os.path.isabs(text) or PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    return _PATH.sub(lambda match: PureWindowsPath(match.group()).name, text)
