"""Names and numbers as they are printed. Names come from users and datasets and are not trusted."""

import html
import math
import re


# Joiners that scripts and emoji need, although they are not printable on their own.
_JOINERS = "\u200c\u200d"

MINUS = "\u2212"


def one_line(text: str) -> str:
    """`text` on one line, without invisible characters, such as controls and changes of direction."""
    text = re.sub(r"\s+", " ", str(text)).strip()
    return "".join(char if char.isprintable() or char in _JOINERS else "\ufffd" for char in text)


def markdown(text: str) -> str:
    """`text` on one line, escaped for Markdown, also within a table."""
    text = html.escape(one_line(text), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal, without the percent sign."""
    return f"{100 * fraction:.1f}" if math.isfinite(fraction) else "nan"


def points(change: float) -> str:
    """A change of a fraction in percentage points, with its sign."""
    if not math.isfinite(change):
        return "nan"
    size = f"{abs(100 * change):.1f}"
    sign = "" if float(size) == 0 else "+" if change > 0 else MINUS
    return sign + size


def and_then(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b, and c`; two parts get a comma if one of them contains "and"."""
    if len(parts) == 2 and not any(" and " in part for part in parts):
        return " and ".join(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
