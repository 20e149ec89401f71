"""Which image is in which split, with what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd


IMAGE, LABEL, CAPTION = "image", "label", "caption"


@dataclass(frozen=True)
class Layout:
    """The rows of every split of a folder of images.

    Attributes:
        splits: for every split a table with the column "image", absolute paths; "label", class names, or indices into
            `class_names`, None for unlabeled rows; "caption", strings or lists of them; and any further columns. Only
            "image" is required.
        sources: for every split the files and folders that its rows are from, relative to the folder.
        class_names: the class names in label order; None: the distinct labels, sorted.
        group_columns: the columns that usually name the groups; empty: the classes are the groups.
        left_out: why files were not read, by path relative to the folder. Images that are neither in a split nor here
            are added by `resolve`, as not listed.
        notes: what was decided, in sentences for the user.
        notes_on_labels: what was decided about the column "label", which are notes unless other labels are used.
        is_metadata: whether a metadata file, as for `imagefolder`, lists the images.
    """

    splits: Mapping[str, pd.DataFrame]
    sources: Mapping[str, tuple[str, ...]]
    class_names: tuple[str, ...] | None = None
    group_columns: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    notes_on_labels: tuple[str, ...] = ()
    is_metadata: bool = False
