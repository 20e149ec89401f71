"""What commands pass on to the package, such that two calls can be compared."""

import argparse
import dataclasses
import enum


class Rows:
    column_names = ("image", "label", "place", "img", "lab")

    def __init__(self, *name):
        self.name = name

    def __repr__(self):
        return f"Rows{self.name}"


def plain(value):
    """What a command passes on, such that two of them can be compared."""
    if isinstance(value, argparse.Namespace):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain(getattr(value, part.name, None)) for part in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, enum.Enum):
        return [plain(part) for part in value]
    return repr(value) if type(value).__module__ != "starft_hf.hub.classifier" else None
