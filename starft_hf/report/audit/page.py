"""An audit as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import starft_hf
from starft_hf.report.thumbnails import png_uri, thumbnail
from starft_hf.utils.plotting import COLORS, DARK_COLORS, SERIES
from starft_hf.utils.text import one_decimal, one_line, percent, points


# Rows of a table; all are in the JSON file.
_MOST_GROUPS = 40
_MOST_PAIRS = 12
_MOST_CORRELATES = 40

# Of 255, that of the part of an image that counts most.
_MOST_OPAQUE = 215

_GROUPED = {
    "group_column": "Groups are those of the dataset.",
    "pseudo_groups": "The dataset names no groups. These combine the class with what the start sees of the pool's "
    "templates in an image.",
    "classes": "The dataset names no groups, so these are the classes.",
}


def render_audit(content: Mapping[str, Any], images: Mapping[int, Image.Image] | None = None) -> str:
    """The page of `AuditResult.as_dict`, with images by row; it loads nothing from anywhere and runs no script."""
    environment = Environment(
        loader=PackageLoader("starft_hf.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: one_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters |= {"percent": percent, "points": points}
    groups = sorted(content["groups"].items(), key=lambda item: item[1]["after"]["accuracy"])
    found = content["correlates"]["found"]
    return environment.get_template("audit/audit.html.jinja").render(
        audit=content,
        lead=sentences(content),
        groups=groups[:_MOST_GROUPS],
        hidden_groups=max(0, len(groups) - _MOST_GROUPS),
        grouped=_GROUPED[content["grouped_by"]],
        pairs=_pairs(content),
        tiles=[_tile(mistake, images or {}) for mistake in content["mistakes"]],
        tables=[
            (heading, phrase, [row for row in found if row["of"] == of][:_MOST_CORRELATES])
            for heading, phrase, of in (
                ("Labels", "its images are", "labels"),
                ("Mistakes within a class", "its mistaken images are", "mistakes"),
            )
        ],
        colors=COLORS,
        dark_colors=DARK_COLORS,
        version=starft_hf.__version__,
    )


def sentences(content: Mapping[str, Any]) -> list[str]:
    """What matters most of `AuditResult.as_dict`, in sentences."""
    worst, average = content["groups"][content["worst_group"]], content["average"]
    lead = f"{percent(worst['after']['accuracy'])}% in the worst group, {content['worst_group']}"
    lead += f"; {percent(average['after']['accuracy'])}% on average."
    found = [lead]
    if content["start"] is not None:
        change = points(worst["after"]["accuracy"] - worst["before"]["accuracy"])
        other = points(average["after"]["accuracy"] - average["before"]["accuracy"])
        found.append(f"Fine-tuning changed this group by {change} points, and the average by {other}.")
    pairs = _pairs(content)
    if pairs and pairs[0]["gain"] >= 0.02:
        first = pairs[0]
        found.append(
            f"Images of other classes that look like \u201c{first['templates'][0]}\u201d are given "
            f"{one_decimal(first['after'])} points more probability of {first['class_name']} than others"
            + (f" ({points(first['before'])} before fine-tuning)." if first["before"] is not None else ".")
        )
    labels = [row for row in content["correlates"]["found"] if row["of"] == "labels"]
    properties = [row["sentence"] for row in labels if row["kind"] == "property"]
    if properties:
        found.append(f"In the dataset, {properties[0]}.")
    return found


def summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of `AuditResult.as_dict`: numbers and a few sentences, no images."""
    worst = content["groups"][content["worst_group"]]

    def accuracies(group: Mapping[str, Any]) -> dict[str, float | None]:
        return {when: group[when] and round(group[when]["accuracy"], 6) for when in ("before", "after")}

    return {
        "score": round(content["score"], 6),
        "images": content["images"],
        "worst_group": {"name": content["worst_group"], **accuracies(worst)},
        "average": accuracies(content["average"]),
        "sentences": [*sentences(content), *_forgotten(content["forgotten"])],
    }


def _forgotten(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = []
    if found["answers_changed"] is not None:
        lines.append(f"Fine-tuning changed {percent(found['answers_changed'])}% of the answers.")
    for name, kept in found["retention"].items():
        before = "" if kept["before"] is None else f"; it was {percent(kept['before'])}% before fine-tuning"
        lines.append(f"The accuracy on {name} is {percent(kept['after'])}%{before}.")
    return lines


def _tile(mistake: Mapping[str, Any], images: Mapping[int, Image.Image]) -> dict[str, Any]:
    """A mistake with its image and its maps, that of the start first."""
    maps = [(when, mistake[when]) for when in ("before", "after") if mistake[when] is not None]
    # Both maps have the same scale.
    largest = max(float(np.abs(own["values"]).max()) for _, own in maps)
    return {
        **mistake,
        "image": thumbnail(images.get(mistake["row"])),
        "maps": [{"when": when, **own, "uri": png_uri(_overlay(own["values"], largest))} for when, own in maps],
    }


def _overlay(values: Sequence[Sequence[float]], largest: float) -> Image.Image:
    """A pixel per part, in the color of what speaks for a mistake or against it, the more opaque the more it does.

    By the square root, since what a background says is spread over many parts.
    """
    effects = np.array(values, dtype=np.float64)
    colors = np.where((effects > 0)[..., None], _rgb(SERIES[1]), _rgb(SERIES[2]))
    opacity = _MOST_OPAQUE * np.sqrt(np.abs(effects) / max(largest, 1e-12))
    return Image.fromarray(np.dstack([colors, opacity.round()]).astype(np.uint8), "RGBA")


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue


def _pairs(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes and templates, those whose attraction has grown most first."""
    own = content["sensitivity"]
    if own is None:
        return []

    def value(name: str, label: int, template: int) -> float | None:
        rows: Sequence[Sequence[float]] | None = own[name]
        return None if rows is None else rows[label][template]

    # Templates of one meaning split the images alike, and are one row.
    merged: dict[tuple[str, float, float | None], dict[str, Any]] = {}
    for label, class_name in enumerate(content["class_names"]):
        for template, text in enumerate(own["templates"]):
            before = value("attraction_before", label, template)
            after = own["attraction"][label][template]
            row = {
                "class_name": class_name,
                "templates": [],
                "after": after,
                "before": before,
                "gain": after - max(before or 0.0, 0.0),
                "shift": value("shift", label, template),
                "shift_before": value("shift_before", label, template),
            }
            merged.setdefault((class_name, after, before), row)["templates"].append(text)
    return sorted(merged.values(), key=lambda row: -row["gain"])[:_MOST_PAIRS]
