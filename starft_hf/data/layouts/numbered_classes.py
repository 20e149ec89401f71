"""Classes whose names are numbered, as 001.Black_footed_Albatross and n02085620-Chihuahua."""

import re
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from starft_hf.data.layouts.layout import LABEL, Layout
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.utils.names import spelling


# Of fewer digits, some classes of a set would have a number of this form and others not; of four, it may be a year.
_NUMBER = re.compile(r"((?:\d{3}|\d{5,})[._]+|n\d{8}[-_])(?=[^\W\d_])")


def without_numbers(
    layout: Layout, splits: Mapping[str, pd.DataFrame], wanted: Wanted
) -> tuple[Layout, dict[str, pd.DataFrame]]:
    """The layout and its splits with class names that do not begin with numbers, in the same order.

    Only if all names begin with a number of their own, and differ without it.
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
    if len(numbers) < len(set(labels)) or not distinct:
        return layout, dict(splits)
    names = tuple(plain[name] for name in sorted(plain))
    first = min(plain)
    note = f"Class names are read without their numbers, as {plain[first]!r} for {first!r}."
    renamed = {
        split: rows.assign(**{str(named[split]): rows[named[split]].map(plain, na_action="ignore")})
        for split, rows in splits.items()
    }
    return replace(layout, class_names=names, notes=(*layout.notes, note)), renamed
