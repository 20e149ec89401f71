"""Matplotlib figures of a discovery."""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starft_hf.utils.plotting import INK, PAPER, SERIES, drawing


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LONGEST = 34
_MOST_LABELS = 24


@drawing()
def draw_heat_map(
    effects: NDArray[np.float64], attributes: Sequence[str], class_names: Sequence[str], num_found: int
) -> "Figure":
    """A heat map of the effects `(A, C)` of attributes on labels; the first `num_found` attributes were found.

    The others are marked by words, since shades of gray are lost on many screens.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    if not len(effects):
        return _nothing_to_draw()
    # Of many labels, those with the largest effects, in their order.
    labels = np.sort(np.argsort(-np.abs(effects).max(0), kind="stable")[:_MOST_LABELS])
    effects = effects[:, labels]
    figure = Figure(figsize=(4.2 + 0.62 * len(labels), 1.7 + 0.34 * len(effects)), layout="constrained")
    axis = figure.subplots()
    # With a lower limit, small effects look small even if there are no large ones.
    limit = max(0.2, float(np.abs(effects).max(initial=0)))
    colors = LinearSegmentedColormap.from_list("effects", [SERIES[2], PAPER, SERIES[1]])
    image = axis.imshow(effects, cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), effect in np.ndenumerate(effects):
        dark = np.dot(image.to_rgba(effect)[:3], (0.2126, 0.7152, 0.0722)) < 0.42
        axis.text(column, row, f"{effect:+.2f}", ha="center", va="center", fontsize=8, color=PAPER if dark else INK)
    titles = ["\n".join(wrap(class_names[label], _LONGEST)) for label in labels]
    axis.set_xticks(range(len(labels)), titles, rotation=35, ha="right")
    names = [name if row < num_found else f"{name} (not found)" for row, name in enumerate(attributes)]
    axis.set_yticks(range(len(effects)), ["\n".join(wrap(name, _LONGEST)) for name in names])
    for label in axis.get_yticklabels()[:num_found]:
        label.set(fontweight="bold")
    if 0 < num_found < len(effects):
        axis.axhline(num_found - 0.5, color=INK, linewidth=1.2)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set_title("How much more often images of a class have it than other images", fontsize=10, wrap=True)
    bar = figure.colorbar(image, ax=axis, shrink=0.8)
    bar.set_label("difference of fractions; negative: less often", fontsize=8)
    return figure


@drawing()
def draw_examples(rows: Sequence[tuple[str, Sequence[Any], Sequence[Any]]], images: int) -> "Figure":
    """Rows of a title, images with an attribute and images without it, at most `images` of either kind."""
    from matplotlib.figure import Figure

    if not rows:
        return _nothing_to_draw()
    # In inches: an image, the room between two, and the title of a row.
    size, gap, title = 1.1, 0.1, 0.3
    width, height = (size + gap) * (2 * images + 0.5), (size + title) * len(rows)
    figure = Figure(figsize=(width, height))
    ratios = [1] * images + [0.3] + [1] * images
    grid = {
        "left": 0,
        "right": 1,
        "bottom": 0,
        "top": 1 - title / height,
        "wspace": gap / size,
        "hspace": title / size,
    }
    axes = figure.subplots(len(rows), len(ratios), squeeze=False, width_ratios=ratios, gridspec_kw=grid)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (attribute, images_with, images_without) in zip(axes, rows, strict=True):
        for first, heading, shown in ((0, attribute, images_with), (images + 1, "without it", images_without)):
            line[first].set_title("\n".join(wrap(heading, 13 * images)), loc="left", fontsize=9)
            for axis, image in zip(line[first:], shown, strict=False):
                axis.imshow(image)
    return figure


def _nothing_to_draw() -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1))
    text = "The model distinguishes none of the templates from the plain caption."
    figure.text(0.5, 0.5, text, ha="center", fontsize=9)
    return figure
