"""Classes whose names are numbered, as 001.Black_footed_Albatross and n02085620-Chihuahua."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas as pd

from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.utils.names import spelling


_NUMBER = re.compile(r"(\d+[._-]+ ?|n\d{8}[-_])(?=[^\W\d_])")


def without_numbers(
    layout: Layout, splits: Mapping[str, pd.DataFrame], wanted: Wanted
) -> tuple[Layout, dict[str, pd.DataFrame]]:
    """The layout and its splits with class names that do not begin with numbers, in the same order.

    Only if all names begin with a number of their own, by which they are counted, and differ without it.
    """
    named = {
        split: next((name for name in (wanted.label, LABEL) if name in rows), None) for split, rows in splits.items()
    }
    values = [splits[split][name] for split, name in named.items() if name is not None]
    if layout.class_names is not None or len(values) < len(splits) or not values:
        return layout, dict(splits)
    labels = pd.concat(values).dropna().tolist()
    if not all(isinstance(label, str) for label in labels):
        return layout, dict(splits)
    numbers = {name: found[1] for name in labels if (found := _NUMBER.match(name))}
    plain = {name: name[len(number) :] for name, number in numbers.items()}
    distinct = len({*numbers.values()}) == len({*map(spelling, plain.values())}) == len(numbers) > 1
    if len(numbers) < len(set(labels)) or not distinct or not _count(numbers.values()):
        return layout, dict(splits)
    names = tuple(plain[name] for name in sorted(plain))
    first = min(plain)
    note = f"Class names are read without their numbers, as {plain[first]!r} for {first!r}."
    renamed = {
        split: rows.assign(**{str(named[split]): rows[named[split]].map(plain, na_action="ignore")})
        for split, rows in splits.items()
    }
    return replace(layout, class_names=names, notes=(*layout.notes, note)), renamed


def _count(numbers: Iterable[str]) -> bool:
    """Whether numbers count classes, as 001 and 010, or 1 to 3, or are WordNet's, rather than mean something."""
    digits = [number.rstrip("._ -") for number in numbers]
    if all(number.startswith("n") for number in digits):
        return True
    if any(number.startswith("0") and len(number) > 1 for number in digits):
        return len({*map(len, digits)}) == 1
    values = sorted(int(number) for number in digits if number.isdecimal())
    return (
        len(values) == len(digits)
        and values[0] in (0, 1)
        and values == list(range(values[0], values[0] + len(values)))
    )
