"""Matplotlib figures of a discovery."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LONGEST = 34
_MOST_LABELS = 24


def draw_heat_map(
    effects: NDArray[np.float64], attributes: Sequence[str], class_names: Sequence[str], num_found: int
) -> "Figure":
    """A heat map of the effects `(A, C)` of attributes on labels; the first `num_found` attributes were found."""
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
    image = axis.imshow(effects, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), effect in np.ndenumerate(effects):
        color = "white" if abs(effect) > 0.6 * limit else "black"
        axis.text(column, row, f"{effect:+.2f}", ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(labels)), [_short(class_names[label]) for label in labels], rotation=35, ha="right")
    axis.set_yticks(range(len(effects)), map(_short, attributes))
    for row, label in enumerate(axis.get_yticklabels()):
        label.set(fontweight="bold", color="black") if row < num_found else label.set(color="#777777")
    if 0 < num_found < len(effects):
        axis.axhline(num_found - 0.5, color="black", linewidth=1.2)
    axis.set_title("How much more often a label's images have it\n(bold, above the line: found)", fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def draw_examples(rows: Sequence[tuple[str, Sequence[Any], Sequence[Any]]], images: int) -> "Figure":
    """Rows of a title, images with an attribute and images without it, at most `images` of either kind."""
    from matplotlib.figure import Figure

    if not rows:
        return _nothing_to_draw()
    figure = Figure(figsize=(1.1 * (2 * images + 0.6), 1.45 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), 2 * images + 1, squeeze=False, width_ratios=[1] * images + [0.3] + [1] * images)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (title, images_with, images_without) in zip(axes, rows, strict=True):
        for first, heading, shown in ((0, _short(title), images_with), (images + 1, "without it", images_without)):
            line[first].set_title(heading, loc="left", fontsize=9)
            for axis, image in zip(line[first:], shown, strict=False):
                axis.imshow(image)
    return figure


def _nothing_to_draw() -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1))
    text = "The model distinguishes none of the templates from the plain caption."
    figure.text(0.5, 0.5, text, ha="center", fontsize=9)
    return figure


def as_png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _short(text: str) -> str:
    # Matplotlib reads text between dollar signs as a formula.
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\u2026"
    return text.replace("$", r"\$")
