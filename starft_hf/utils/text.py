"""Names and numbers as they are printed. Names are whatever users and data sets call things: nothing is trusted."""

import html
import math
import re


# Joiners that scripts and emoji need, though they are not printable by themselves.
_JOINERS = "\u200c\u200d"

MINUS = "\u2212"


def one_line(text: str) -> str:
    """`text` on one line, without characters that cannot be seen, such as controls and changes of direction."""
    text = re.sub(r"\s+", " ", str(text)).strip()
    return "".join(char if char.isprintable() or char in _JOINERS else "\ufffd" for char in text)


def markdown(text: str) -> str:
    """`text` on one line such that Markdown shows it as it is, in a table as well."""
    text = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def percent(share: float) -> str:
    """A share in percent with one decimal, without the sign."""
    return f"{100 * share:.1f}" if math.isfinite(share) else "nan"


def points(change: float) -> str:
    """A change of a share in percentage points, signed."""
    if not math.isfinite(change):
        return "nan"
    size = f"{abs(100 * change):.1f}"
    if float(size) == 0:
        return size
    return f"{'+' if change > 0 else MINUS}{size}"


def and_then(parts: list[str]) -> str:
    """`a`, `a, and b`, `a, b, and c`; names by themselves go without the comma of two."""
    if len(parts) == 2 and not any(" and " in part for part in parts):
        return " and ".join(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
