"""Datasets of the rows of a layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from starft_hf.data.imagenet import names_of_ids
from starft_hf.data.layouts.layout import Layout
from starft_hf.data.layouts.resolve import image_column, label_column
from starft_hf.data.layouts.table_columns import Wanted, values


def as_datasets(layout: Layout, wanted: Wanted, root: Path) -> DatasetDict:
    """The splits of a layout, whose images `datasets` opens; class names are words where they are WordNet ids."""
    names = _class_names(layout, wanted)
    indices = {name: index for index, name in enumerate(names or ())}
    splits = {}
    for split, rows in layout.splits.items():
        columns = {str(name): values(rows[name]) for name in rows}
        features = Features.from_arrow_schema(pa.Table.from_pandas(rows, preserve_index=False).schema)
        # Other datasets, with which these may be joined, have strings of the usual size.
        features = Features({name: _usual(feature) for name, feature in features.items()})
        features[image_column(rows, wanted)] = Image()
        label = label_column(rows, wanted)
        if names is not None and label is not None:
            kind = ClassLabel(names=list(names_of_ids(names, root) or names))
            lists = any(isinstance(value, list) for value in columns[label])
            columns[label] = [_indexed(value, indices) for value in columns[label]]
            features[label] = List(kind) if lists else kind
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def _indexed(value: Any, indices: Mapping[str, int]) -> Any:
    """The index of a class, or those of a list of classes."""
    if isinstance(value, list):
        return [_indexed(entry, indices) for entry in value]
    return indices[value] if isinstance(value, str) else int(value)


def _usual(feature: object) -> object:
    return Value("string") if feature == Value("large_string") else feature


def _class_names(layout: Layout, wanted: Wanted) -> tuple[str, ...] | None:
    """The class names in label order, of all splits; None for labels that are numbers without names."""
    if layout.class_names is not None:
        return layout.class_names
    labels = [label_column(rows, wanted) for rows in layout.splits.values()]
    columns = [rows[label] for rows, label in zip(layout.splits.values(), labels, strict=True) if label is not None]
    if not columns or None in labels:
        return None
    values = pd.concat(columns)
    if values.isna().any():
        return None
    # An image of no class has an empty list.
    found = values.explode().dropna().drop_duplicates().tolist()
    return tuple(sorted(found)) if all(isinstance(value, str) for value in found) else None
