"""Class names as words, their checks and files, and error messages for unknown names."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from starft_hf.utils.files import read_text
from starft_hf.utils.untrusted import read_json


_MOST_LISTED = 40


def readable(class_name: str) -> str:
    """A class name as words: `fire_truck` becomes `fire truck`."""
    return " ".join(class_name.replace("_", " ").split())


def log_names(names: Iterable[str]) -> dict[str, str]:
    """Distinct names without spaces and slashes, for keys of a log: `owl_x_left` for `owl x left`."""
    found: dict[str, str] = {}
    for name in names:
        key = first = re.sub(r"[^\w.-]+", "_", name).strip("_") or "unnamed"
        number = 1
        while key in found.values():
            number += 1
            key = f"{first}_{number}"
        found[name] = key
    return found


# Names that say nothing: numbers, WordNet ids, "class 3". CUB and others put a number and a full stop first.
_NO_WORD = re.compile(r"[\d.]+|n\d{8}|(class|label|category|cluster|id)[ _-]?\d+|\d+\.[^\W\d].*", re.IGNORECASE)
_NUMBERED = re.compile(r"\d+[ ._-]+\S")


def not_words(class_names: Sequence[str]) -> list[str]:
    """Those of the class names that are not words, such as "n02129604", "001.Black_footed_Albatross" and "0"."""
    if all(_NUMBERED.match(name) for name in class_names):
        return list(class_names)
    return [name for name in class_names if _NO_WORD.fullmatch(name)]


def distinct_names(names: Iterable[str]) -> tuple[str, ...]:
    """`names`, with underscores appended to duplicates, such as "missile" and "sunglasses" in ImageNet.

    Prompts drop underscores at the end, so that they stay the published ones.
    """
    seen: dict[str, None] = {}
    for name in names:
        while name in seen:
            name += "_"
        seen[name] = None
    return tuple(seen)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """A message with the name that was passed, the known names unless they are many, and the closest of them."""
    known = list(known)
    plain = {str(other).casefold(): other for other in known}
    close = difflib.get_close_matches(str(name).casefold(), plain, n=1, cutoff=0.5)
    hint = f" Did you mean {plain[close[0]]!r}?" if close else ""
    listed = f" Known: {', '.join(map(repr, known))}." if len(known) <= _MOST_LISTED else ""
    return f"unknown {kind} {name!r}.{hint}{listed}"


def check_names(class_names: Sequence[str]) -> None:
    """Raise ValueError, naming the first invalid one, if class names are not a list of non-empty strings."""
    if isinstance(class_names, str):
        raise ValueError(f"class_names is the string {class_names!r}; pass a list of names, in label order")
    if isinstance(class_names, (Mapping, Set)):
        found = f"class_names is a {type(class_names).__name__}"
        example = "[names[label] for label in sorted(names)]" if isinstance(class_names, Mapping) else "sorted(names)"
        raise ValueError(f"{found}, whose order is not that of the labels; pass a list, such as {example}")
    if len(class_names) == 0:
        raise ValueError("class_names is empty; pass one name for every label, in label order")
    for label, name in enumerate(class_names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"class_names has {name!r} for label {label}; pass a name for every label")


def read_names(path: Path) -> list[str]:
    """The class names in a file: one per line; or in JSON a list, or a mapping between labels and names.

    Raises:
        ValueError: if it does not hold a name for every label.
    """
    if path.suffix == ".json":
        return names_in(read_json(path), repr(str(path)))
    return names_in([line.strip() for line in read_text(path).strip().splitlines()], repr(str(path)))


def names_in(content: Any, what: str) -> list[str]:
    """The class names in a list, or in a mapping between labels and names; ValueError if `what` holds none."""
    try:
        if isinstance(content, dict):
            if all(isinstance(label, int) for label in content.values()):
                content = {label: name for name, label in content.items()}
            by_label = {int(label): name for label, name in content.items()}
            content = [by_label[label] for label in range(len(content))]
        if not isinstance(content, list):
            raise TypeError(f"it is a {type(content).__name__}")
        check_names(content)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{what} does not hold class names: expected a list of them, or a mapping such as "
            f'{{"0": "owl", "1": "truck"}} ({error})'
        ) from error
    return content


def check_distinct(class_names: Sequence[str]) -> None:
    """Check that no two classes have the same name, since a classifier made from names could not distinguish them."""
    first: dict[str, int] = {}
    for label, name in enumerate(class_names):
        if first.setdefault(name, label) != label:
            raise ValueError(
                f"class_names contains duplicates: {name!r}, for labels {first[name]} and {label}; use distinct names "
                "such as 'crane (bird)' and 'crane (machine)'"
            )


def spelling(name: str) -> str:
    """A name without what captions do not show: case, and whether words are joined by spaces, hyphens or underscores.

    A hyphen before or after all words stays: "-1" and "1" are two classes, as are "A-" and "A".
    """
    words = re.sub(r"[\s_]+", " ", name).strip()
    return re.sub(r"(?<=[^\s-])[ -]+(?=[^\s-])", " ", words).casefold()


def check_spelling(names: Iterable[str], what: str) -> None:
    """Raise ValueError for two names of classes that differ only in their spelling."""
    known: dict[str, str] = {}
    for name in names:
        if (first := known.setdefault(spelling(name), name)) != name:
            raise ValueError(
                f"{what} has the classes {first!r} and {name!r}; spell them the same, or give other names to "
                "different classes"
            )
