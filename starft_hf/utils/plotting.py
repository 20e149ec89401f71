"""What all figures of Matplotlib share: the colors of a report's page in its light scheme, settings, and PNG files."""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# All different: the page finds them in a figure and replaces them by its variables, for its dark scheme.
INK = "#1b1f24"
SOFT = "#6a727c"
LINE = "#dfe3e8"
PAPER = "#ffffff"
# The first is the baseline's; the others differ for people with any color vision.
SERIES = ("#767c84", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# By the names of the page's variables.
COLORS = {"ink": INK, "soft": SOFT, "line": LINE, "paper": PAPER} | {
    f"series-{index}": color for index, color in enumerate(SERIES)
}
# The same names in the dark scheme.
DARK_COLORS = {"ink": "#e8eaed", "soft": "#9aa3ad", "line": "#343a42", "paper": "#1c2026"} | {
    f"series-{index}": color
    for index, color in enumerate(("#9ba2ab", "#f0803c", "#4a9fdc", "#22b78d", "#dd93bb", "#f0b23a", "#86cdf4"))
}

_SETTINGS = {
    "svg.fonttype": "none",
    # A dollar in the name of a class does not start a formula.
    "text.parse_math": False,
    "font.size": 11,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "hatch.linewidth": 1.2,
    "figure.constrained_layout.h_pad": 0.05,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), PAPER),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 10),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """A context with the settings of figures, whatever the user's own are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


@drawing()
def as_png(figure: "Figure", dpi: int = 140, dark: bool = False) -> bytes:
    """The figure as a PNG file; with `dark`, its colors become those of the dark scheme, for good."""
    if dark:
        _darken(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def _darken(figure: "Figure") -> None:
    from matplotlib.colors import to_hex, to_rgba_array

    dark = {color: DARK_COLORS[name] for name, color in COLORS.items()}
    # Ticks and legends are complete only after drawing.
    figure.draw_without_rendering()
    for artist in figure.findobj():
        for kind in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            current = getattr(artist, f"get_{kind}", None)
            change = getattr(artist, f"set_{kind}", None)
            if current is None or change is None:
                continue
            colors = to_rgba_array(current())
            if len(colors):
                new = [(dark.get(to_hex(color), to_hex(color)), float(color[3])) for color in colors]
                change(new if len(new) > 1 else new[0])
