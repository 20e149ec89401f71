"""Matplotlib figures as SVG elements of an HTML page, in its fonts and colors, light and dark."""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

from starft_hf.utils.plotting import COLORS


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_VARIABLES = {color: f"var(--{name})" for name, color in COLORS.items()}


def as_svg(figure: "Figure", prefix: str, alt: str) -> str:
    """`figure` as an SVG element with alternative text; `prefix` must differ between the figures of a page."""
    import matplotlib

    buffer = io.StringIO()
    # The salt makes ids reproducible, and different from those of other figures.
    with matplotlib.rc_context({"svg.hashsalt": prefix}), warnings.catch_warnings():
        # The browser has fonts for the scripts that Matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element) -> None:
    """Recolor, and remove namespaces, ids of groups, and metadata and style sheets, which apply to the whole page."""
    element.tag = _local(element.tag)
    # Line breaks in path data and between elements are a tenth of the text.
    attributes = {_local(name): " ".join(value.split()) for name, value in element.attrib.items()}
    if element.tag == "g":
        attributes.pop("id", None)
    # Variables are supported by all browsers in styles only.
    if "fill" in attributes:
        attributes["style"] = f"fill: {attributes.pop('fill')}; {attributes.get('style', '')}"
    if "style" in attributes:
        attributes["style"] = _page_style(attributes["style"])
    element.attrib = attributes
    element.tail = None
    if element.tag != "text":
        element.text = None
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _clean(child)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _page_style(style: str) -> str:
    # Without the name of Matplotlib's font that of the page applies; size and weight stay.
    style = re.sub(r"font-family:[^;]*;?", "", style)
    style = re.sub(r"font:\s*(bold|\d{3})\s", r"font-weight: \1; font: ", style)
    style = re.sub(r"font:\s*([\d.]+px)[^;]*;?", r"font-size: \1;", style)
    return re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLES.get(match[0], match[0]), style).strip()
