"""Matplotlib figures as SVG that is part of an HTML page: its fonts, its colours, in light and in dark."""

import contextlib
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Matplotlib wants a value for every colour, the page decides by its scheme: these stand for the page's variables.
INK = "#fe0001"
SOFT = "#fe0002"
LINE = "#fe0003"
PAPER = "#fe0004"
SERIES = tuple(f"#fe01{index:02x}" for index in range(7))

_PAGE_COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}

_SETTINGS = {
    "svg.fonttype": "none",
    # A dollar in the name of a class is no formula.
    "text.parse_math": False,
    "font.size": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "hatch.linewidth": 1.2,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The settings under which figures are made, whatever the user's own are."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser has fonts for the scripts that Matplotlib's own lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def as_svg(figure: "Figure", prefix: str, alt: str) -> str:
    """`figure` as an SVG element for the body of an HTML page.

    The same figure always gives the same text.

    Args:
        figure: drawn with the colours of this module.
        prefix: what the element's ids start with; has to differ between the figures of a page.
        alt: what it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    _rename_ids(root, prefix)
    for element in root.iter():
        # Variables are certain to work in styles only.
        if "fill" in element.attrib:
            element.attrib["style"] = f"fill: {element.attrib.pop('fill')}; {element.attrib.get('style', '')}"
        if "style" in element.attrib:
            element.attrib["style"] = _page_style(element.attrib["style"])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode")


def _strip(element: ElementTree.Element) -> None:
    """Take away namespaces, metadata and style sheets, which would hold for the whole page."""
    element.tag = _local(element.tag)
    # Line breaks in path data and between elements are a tenth of the text.
    element.attrib = {_local(name): " ".join(value.split()) for name, value in element.attrib.items()}
    element.tail = None
    if element.tag != "text":
        element.text = None
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _strip(child)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Give the ids that are used names of their own, and drop the others."""
    used = set()
    for element in root.iter():
        used |= set(re.findall(r"url\(#([^)]+)\)", " ".join(element.attrib.values())))
        used.add(element.attrib.get("href", "")[1:])
    ids = [element.attrib["id"] for element in root.iter() if element.attrib.get("id") in used]
    new = {old: f"{prefix}-{index}" for index, old in enumerate(dict.fromkeys(ids))}
    for element in root.iter():
        old = element.attrib.pop("id", "")
        if old in new:
            element.attrib["id"] = new[old]
        if "href" in element.attrib:
            element.attrib["href"] = f"#{new[element.attrib['href'][1:]]}"
        for name in ("clip-path", "style"):
            if name in element.attrib:
                value = element.attrib[name]
                element.attrib[name] = re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{new[match[1]]})", value)


def _page_style(style: str) -> str:
    # The name of Matplotlib's font goes, which leaves that of the page; size and weight stay.
    style = re.sub(r"font-family:[^;]*;?", "", style)
    style = re.sub(r"font:\s*(?:(bold|\d{3})\s+)?([\d.]+px)[^;]*;?", _font, style)
    return re.sub(r"#fe0[01][0-9a-f]{2}", lambda match: _PAGE_COLOURS.get(match[0], match[0]), style).strip()


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]};"
