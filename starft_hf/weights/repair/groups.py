"""The groups by whose worst a repair is chosen, and whether there are enough images of each."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from starft_hf.utils.names import unknown_name
from starft_hf.weights.repair.embedded import Ints
from starft_hf.weights.repair.selection import FOLDS, folds_of_mixed_clusters


WORST_GROUP = "worst_group"
PSEUDO_GROUPS = "pseudo_groups"
WORST_CLASS = "worst_class"
MEASURES = (WORST_GROUP, PSEUDO_GROUPS, WORST_CLASS)


def resolve_measure(select_by: str | None, *, has_groups: bool, has_pool: bool) -> str:
    """What to choose by; None is the worst group if the dataset has groups, or else the worst class.

    Raises:
        ValueError: if it is unknown, or what it needs is missing.
    """
    if select_by is None:
        return WORST_GROUP if has_groups else WORST_CLASS
    if select_by not in MEASURES:
        raise ValueError(unknown_name("select_by", select_by, MEASURES))
    if select_by == WORST_GROUP and not has_groups:
        raise ValueError(
            f"select_by={select_by!r} needs groups, and dataset has no column that names them; pass group_column, or "
            f"select_by={WORST_CLASS!r}"
        )
    if select_by == PSEUDO_GROUPS and not has_pool:
        raise ValueError(
            f"select_by={select_by!r} groups images by what the start sees of a pool's templates in them; pass base, "
            f"the model before fine-tuning, and spuriosity, or select_by={WORST_CLASS!r}"
        )
    return select_by


def check_numbers(labels: Ints, class_names: Sequence[str], groups: Sequence[str] | None) -> None:
    """Check that there are images of every class and enough of every group, or without groups of every class.

    Raises:
        ValueError: if not, naming the first that has too few.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    for name, count in zip(class_names, counts, strict=True):
        if count < 2:
            found = "no images" if count == 0 else "a single image"
            raise ValueError(
                f"dataset has {found} of the class {name!r}, and a repair is fitted to images of every class; add "
                "some, or pass class_names without it"
            )
    sizes = Counter(groups) if groups is not None else dict(zip(class_names, counts.tolist(), strict=True))
    name, size = min(sizes.items(), key=lambda item: (item[1], item[0]))
    if size < FOLDS:
        kind = "class" if groups is None else "group"
        raise ValueError(
            f"dataset has {size} images of the {kind} {name!r}, and choosing a repair by cross-validation takes at "
            f"least {FOLDS} of every {kind}; add some, or choose by larger groups"
        )


def class_of_one_group(labels: Ints, groups: Sequence[str], class_names: Sequence[str]) -> str | None:
    """The first class whose images are all of one group; None if every class has images of several."""
    found: dict[int, set[str]] = {}
    for label, group in zip(labels.tolist(), groups, strict=True):
        found.setdefault(label, set()).add(group)
    return next((class_names[label] for label in sorted(found) if len(found[label]) == 1), None)


def check_clusters(clusters: Ints, labels: Ints, class_names: Sequence[str]) -> None:
    """Check that every class has several clusters, and that they can be divided.

    Raises:
        ValueError: if not, naming the first class that has one.
    """
    pairs = np.unique(np.stack([labels, clusters]), axis=1)
    for name, count in zip(class_names, np.bincount(pairs[0], minlength=len(class_names)), strict=True):
        if count < 2:
            raise ValueError(
                f"all images of the class {name!r} have one value of cluster_column, and a repair is compared on "
                "others than it is fitted to; add images of another, or leave cluster_column out"
            )
    if pairs.shape[1] > len(np.unique(clusters)):
        folds_of_mixed_clusters(clusters, labels, np.random.default_rng(0))


def indices_of(names: Sequence[str]) -> tuple[Ints, tuple[str, ...]]:
    """The index of every name among the distinct ones, and these."""
    distinct, indices = np.unique(np.array(names), return_inverse=True)
    return indices.reshape(-1).astype(np.int64), tuple(distinct.tolist())


def pseudo_groups(labels: Ints, seen: Ints) -> Ints:
    """Group indices `(N,)` of class and attribute.

    Combinations with too few images are one group together, or where that is too small as well, join the largest group
    of their class.
    """
    cells = np.unique(np.stack([labels, seen]), axis=1, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(cells)
    is_rare = sizes[cells] < FOLDS
    if is_rare.sum() >= FOLDS:
        cells = np.where(is_rare, len(sizes), cells)
    else:
        for row in np.flatnonzero(is_rare):
            own = cells[(labels == labels[row]) & ~is_rare]
            cells[row] = np.bincount(own).argmax() if len(own) else cells[row]
    groups: Ints = np.unique(cells, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return groups
