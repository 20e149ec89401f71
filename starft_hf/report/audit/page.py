"""An audit as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import starft_hf
from starft_hf.utils.plotting import COLORS, DARK_COLORS
from starft_hf.utils.text import one_line, percent, points


# Rows of a table; all are in the JSON file.
_MOST_GROUPS = 40
_MOST_PAIRS = 12
_MOST_CORRELATES = 40

_GROUPED = {
    "group_column": "Groups are those of the dataset.",
    "pseudo_groups": "The dataset names no groups. These combine the class with what the start sees of the pool's "
    "templates in an image.",
    "classes": "The dataset names no groups, so these are the classes.",
}


def render_audit(content: Mapping[str, Any]) -> str:
    """The page of `AuditResult.as_dict`; it loads nothing from anywhere and runs no script."""
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
            f"{percent(first['after'])} points more probability of {first['class_name']} than others"
            + (f" ({points(first['before'])} before fine-tuning)." if first["before"] is not None else ".")
        )
    labels = [row for row in content["correlates"]["found"] if row["of"] == "labels"]
    properties = [row["sentence"] for row in labels if row["kind"] == "property"]
    if properties:
        found.append(f"In the dataset, {properties[0]}.")
    return found


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
