"""Reading JSON and YAML that may come from elsewhere: whatever is wrong with it is a ValueError."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from starft_hf.utils.files import read_text


class _Loader(yaml.SafeLoader):
    def compose_node(self, *args: Any) -> Any:
        # A few lines of aliases can expand to billions of entries.
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it refers to parts of itself (*name); write them out")
        return super().compose_node(*args)


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError if it is too large, not JSON, or nested too deeply."""
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """The content of JSON text; ValueError if it is not JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def read_json_object(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object in a file; ValueError, too, if one of the entries that `kinds` names is not of its kind."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")
    for name, kind in kinds.items():
        if name not in content:
            raise ValueError(f"it lacks {name!r}")
        # True is an integer to Python.
        if not isinstance(content[name], kind) or (isinstance(content[name], bool) and kind is int):
            raise ValueError(f"its {name!r} is a {type(content[name]).__name__}")
    return content


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; ValueError if it is too large, not YAML, nested too deeply, or uses aliases."""
    try:
        return yaml.load(read_text(path), _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        problem = "its nesting is too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(problem) from None
