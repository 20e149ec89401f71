"""What commands pass on to the package, such that two calls can be compared."""

import argparse
import dataclasses
import enum
import re
from types import SimpleNamespace


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
    if type(value).__module__ == "starft_hf.hub.classifier":
        return None
    # An address differs from call to call.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


class FolderOfNothing(str):
    """A folder without files in it."""

    def __truediv__(self, name):
        return SimpleNamespace(is_file=lambda: False)


def typed(action, values):
    """The flag of an action with another value than its default, from `values` by its name where none is found."""
    flag = action.option_strings[-1]
    if action.nargs == 0:
        return [flag]
    if action.choices:
        usual = action.default if isinstance(action.default, list) else [action.default]
        return [flag, next(choice for choice in action.choices if choice not in usual)]
    if action.dest in values:
        return [flag, *values[action.dest]]
    if action.default in (True, False):
        return [flag, str(not action.default)]
    name = getattr(action.type, "__name__", "str")
    assert name in ("int", "float", "positive_int", "count"), f"{flag} needs a value in VALUES"
    return [flag, "0.25" if name == "float" else "3"]
