"""What discovery found, drawn with Matplotlib."""

import io
from typing import TYPE_CHECKING

import numpy as np

from starft_hf.data.images import as_rgb
from starft_hf.spuriosity.result import DiscoveryResult


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_LONGEST = 34
_MOST_LABELS = 24


def draw_heat_map(result: DiscoveryResult, top: int) -> "Figure":
    """The effects of the attributes with most information on all labels.

    Args:
        result: of discovery.
        top: number of attributes.
    """
    from matplotlib.figure import Figure

    order = np.argsort(-result.associations.information, kind="stable")
    chosen = [*result.found, *(index for index in order.tolist() if index not in result.found)][:top]
    if not chosen:
        return _nothing_to_draw()
    effects = result.associations.effects[:, chosen].T
    # Of many labels, those with the largest effects, in their order.
    labels = np.sort(np.argsort(-np.abs(effects).max(0), kind="stable")[:_MOST_LABELS])
    effects, names = effects[:, labels], [result.class_names[label] for label in labels]
    height, width = 1.7 + 0.34 * len(chosen), 4.2 + 0.62 * len(names)
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    # Even where little was found, what is next to nothing is to look like it.
    limit = max(0.2, float(np.abs(effects).max(initial=0)))
    image = axis.imshow(effects, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.ndindex(*effects.shape):
        strong = abs(effects[row, column]) > 0.6 * limit
        axis.text(
            column,
            row,
            f"{effects[row, column]:+.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if strong else "black",
        )
    axis.set_yticks(range(len(chosen)), [_short(result.attributes[index].name) for index in chosen])
    for label, index in zip(axis.get_yticklabels(), chosen, strict=True):
        label.set_fontweight("bold" if index in result.found else "normal")
        label.set_color("black" if index in result.found else "#777777")
    axis.set_xticks(range(len(names)), map(_short, names), rotation=35, ha="right")
    if 0 < len(result.found) < len(chosen):
        axis.axhline(len(result.found) - 0.5, color="black", linewidth=1.2)
    axis.set_title("How much more often a label's images have it\n(bold, above the line: found)", fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


def draw_examples(result: DiscoveryResult, rows: int, images: int) -> "Figure":
    """Images with the attribute and without it, for the first rows of the table.

    Args:
        result: of discovery.
        rows: of the table.
        images: with, and as many without.
    """
    from matplotlib.figure import Figure

    shown = result.table[:rows]
    if not shown:
        return _nothing_to_draw()
    figure = Figure(figsize=(1.1 * (2 * images + 0.6), 1.45 * len(shown) + 0.5), layout="constrained")
    axes = figure.subplots(len(shown), 2 * images + 1, squeeze=False, width_ratios=[1] * images + [0.3] + [1] * images)
    names = [(attribute.name, attribute.aspect) for attribute in result.attributes]
    for line, row in zip(axes, shown, strict=True):
        index = names.index((row.attribute, row.aspect))
        of_label = result.labels == result.class_names.index(row.class_name)
        has = result.assigned[row.aspect] == index
        for start, chosen in ((0, of_label & has), (images + 1, of_label & ~has)):
            for axis, place in zip(line[start:], np.flatnonzero(chosen)[:images].tolist(), strict=False):
                axis.imshow(as_rgb(result.dataset[result.indices[place]][result.columns.image]))
        for axis in line:
            axis.set_axis_off()
        line[0].set_title(_short(str(row)), loc="left", fontsize=9)
        line[images + 1].set_title("without it", loc="left", fontsize=9)
    return figure


def _nothing_to_draw() -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1))
    figure.text(0.5, 0.5, "The model can tell none of the templates from the plain caption.", ha="center", fontsize=9)
    return figure


def as_png(figure: "Figure") -> bytes:
    """`figure` as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _short(text: str) -> str:
    # Matplotlib reads what stands between dollars as a formula.
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\u2026"
    return text.replace("$", r"\$")
