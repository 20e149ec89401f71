"""Which rows of its training set a run is trained on, and how often: `shots`, `max_train_samples`, balanced sampling.

All of it is a function of the seed and the dataset, so that it is the same in every process and every resumed run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch.utils.data import Subset
from transformers.utils import logging

from starft_hf.data.columns import ImageColumns, resolve_columns
from starft_hf.data.source import column_names, is_iterable
from starft_hf.data.strata import Rows, classes_of, drawn_rows, groups_of, rows_by
from starft_hf.hub.record import RunRecord
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.sampling import CLASS_BALANCED, GROUP_BALANCED
from starft_hf.utils.collectives import rank


logger = logging.get_logger(__name__)

_MOST_NAMED = 8
# The settings that decide which rows and columns of a training set are used.
_DECIDE_ROWS = (
    *("image_column", "label_column", "caption_column", "group_column", "class_names", "base_loss"),
    *("shots", "max_train_samples", "seed", "data_seed"),
)


def training_subset(args: StarFTConfig, dataset: Any, columns: ImageColumns | None = None) -> Any:
    """The rows that `shots` or `max_train_samples` draws of a training set, in its order; `dataset` itself if all.

    Says so, unless `columns` has to be found first: then a run has been checked already.

    Raises:
        ValueError: if it can only be read in order, has no classes for `shots`, or only one class would be left.
    """
    if dataset is None or (args.shots is None and args.max_train_samples is None):
        return dataset
    name, number = ("shots", args.shots) if args.shots is not None else ("max_train_samples", args.max_train_samples)
    setting, seed = f"{name}={number}", args.sampling_seed
    assert number is not None
    if is_iterable(dataset):
        raise ValueError(
            f"{setting} draws rows of the training set at random, and an iterable dataset can only be read in order; "
            "load it without streaming, or train on its first rows, dataset.take(...), or for max_steps"
        )
    says = columns is not None and rank() == 0
    columns = columns or resolve_columns(dataset, args.column_settings(), what="train_dataset")
    classes = None
    # Without need, no image is read for its label.
    is_read = args.shots is not None or hasattr(dataset, "select_columns")
    if columns.class_names is not None and columns.several is None and is_read:
        classes = rows_by(classes_of(dataset, columns))
    if args.shots is None:
        (everything,) = rows_by([0] * len(dataset)).values()
        kept = drawn_rows(everything, number, seed)
    elif classes is None:
        raise ValueError(
            f"{setting} draws images of every class, and the training set has no labels with class names; set "
            "label_column and class_names, or use max_train_samples"
        )
    else:
        kept = [row for label, rows in classes.items() for row in drawn_rows(rows, number, seed, label)]
    if classes is not None:
        _check_classes(args, classes, set(kept), columns.class_names or (), warns=says)
    if says:
        logger.warning_once(f"{setting}: training on {len(kept):,} of {len(dataset):,} images, by the seed {seed}.")
    if len(kept) == len(dataset):
        return dataset
    return dataset.select(sorted(kept)) if hasattr(dataset, "select") else Subset(dataset, sorted(kept))


def is_trained_on(record: RunRecord, dataset: Any) -> bool:
    """Whether a run was trained on a dataset, or drew its images from it, as far as its record shows."""
    fingerprint = record.data.get("fingerprint")
    if fingerprint is None or not isinstance(dataset, Dataset):
        return False
    try:
        args = StarFTConfig("", **{name: record.config[name] for name in _DECIDE_ROWS if name in record.config})
        columns = resolve_columns(dataset, args.column_settings(), what="dataset")
        used = training_subset(args, dataset).select_columns(columns.used)
    except (ValueError, TypeError):
        # It lacks the columns or the images of the run.
        return False
    return bool(used._fingerprint == fingerprint)


def balanced_strata(args: StarFTConfig, dataset: Any, columns: ImageColumns) -> list[Rows] | None:
    """The rows of every class or group that `train_sampling_strategy` balances; None for another strategy.

    Raises:
        ValueError: if the dataset can only be read in order, or its classes or groups are not known.
    """
    strategy = args.train_sampling_strategy
    if strategy not in (CLASS_BALANCED, GROUP_BALANCED):
        return None
    setting, by_class = f"train_sampling_strategy={strategy!r}", strategy == CLASS_BALANCED
    if is_iterable(dataset):
        raise ValueError(
            f"{setting} draws rows again, and an iterable dataset can only be read in order; load it without "
            "streaming, or balance it yourself: datasets.interleave_datasets([...], stopping_strategy='all_exhausted')"
        )
    if by_class and columns.class_names is None:
        raise ValueError(
            f"{setting} needs labels, and the training set has none with class names; set label_column and "
            "class_names, or use 'random'"
        )
    if not by_class and columns.groups is None:
        raise ValueError(f"{setting} {_without_groups(args, dataset)}, or use {CLASS_BALANCED!r}")
    if not by_class and args.reweight != "none" and rank() == 0:
        logger.warning_once(
            f"{setting} and reweight={args.reweight!r} both weaken the correlation of labels and what images show; "
            "together they overcorrect, unless the groups are unrelated to the pool. Use one of them."
        )
    names = columns.class_names or ()
    strata = {names[label]: rows for label, rows in rows_by(classes_of(dataset, columns)).items()} if by_class else {}
    strata = strata or rows_by(groups_of(dataset, columns))
    if rank() == 0:
        places, smallest = len(dataset) / len(strata), min(strata, key=lambda name: len(strata[name]))
        what = "classes" if by_class else "groups"
        logger.info_once(
            f"{setting}: an epoch has {places:,.1f} images of each of {len(strata)} {what}, so every image of the "
            f"smallest, {smallest!r}, {places / len(strata[smallest]):,.1f} times."
        )
        if by_class and (empty := [repr(name) for name in names if name not in strata]):
            logger.warning_once(f"{setting} balances only classes with images, not {_listed(empty)}.")
    return list(strata.values())


def _check_classes(
    args: StarFTConfig, classes: Mapping[int, Rows], kept: set[int], names: Sequence[str], *, warns: bool
) -> None:
    """Warn of classes with fewer images than `shots`, or that lose all they have; one must not be left alone."""
    few = {names[label]: len(classes.get(label, ())) for label in range(len(names))}
    few = {name: count for name, count in few.items() if args.shots is not None and count < args.shots}
    lost = [names[label] for label, rows in classes.items() if kept.isdisjoint(rows.tolist())]
    if lost and len(classes) - len(lost) < 2:
        raise ValueError(
            f"max_train_samples={args.max_train_samples} leaves images of one class only; at least two are compared. "
            f"Set a larger number, or shots, which draws equally many of each of the {len(classes)} classes"
        )
    if few and warns:
        listed = _listed([f"{name!r} has {count}" for name, count in few.items()])
        logger.warning_once(f"Classes with fewer than shots={args.shots} images are used in full: {listed}.")
    if lost and warns:
        listed = _listed([repr(name) for name in lost])
        logger.warning_once(
            f"max_train_samples={args.max_train_samples} leaves {len(lost)} of {len(classes)} classes without images: "
            f"{listed}. shots draws equally many of each."
        )


def _without_groups(args: StarFTConfig, dataset: Any) -> str:
    """Why there are no groups, and what to do, as a clause."""
    wanted = [args.group_column] if isinstance(args.group_column, str) else args.group_column
    if not wanted:
        return "needs groups, and none are named; set group_column, such as ['label', 'place']"
    present = column_names(dataset) or []
    missing = next(column for column in wanted if column not in present)
    return (
        f"needs groups, and the training set has no column {missing!r}; its columns are {present}. Add it, "
        f"dataset.add_column({missing!r}, [...]), set group_column to others"
    )


def _listed(parts: Sequence[str]) -> str:
    return ", ".join([*parts[:_MOST_NAMED], *(["..."] if len(parts) > _MOST_NAMED else [])])
