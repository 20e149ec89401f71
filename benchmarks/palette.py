"""What the plots of the benchmarks share: the colors of reports and the demo, and sizes for 830 pixels."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from starft_hf.utils.files import file_in_place_of
from starft_hf.utils.plotting import INK, SERIES, drawing


# As in the demo: gray is the model before training, and every method has one color in all plots.
ZERO_SHOT, FLYP, KL, STAR, CONDITIONAL, ATTRIBUTION, WISE_FT = SERIES
BOTH = INK
# Of two measures beside each other.
WORST, AVERAGE = FLYP, KL

# Points; at 830 pixels, 9 inches have 92 pixels each, and 9 points are 11 pixels.
_SIZES = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "legend.title_fontsize": 9,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 9),
}


@contextlib.contextmanager
def page_style() -> Iterator[None]:
    """A context in which plots have these sizes, and the rest as in reports."""
    with drawing(), rc_context(_SIZES):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file that is sharp on screens of two pixels to one."""
    with file_in_place_of(path) as temporary:
        figure.savefig(temporary, format="png", dpi=180)
