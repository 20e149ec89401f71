"""Datasets from the Hub, a folder or a file, with the columns that the trainer expects, and what was not read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetCard
from transformers.utils import logging

from starft_hf.data.files import DataFound, read_files
from starft_hf.data.holdout import VALIDATION_SPLIT, check_share, held_out, image_paths
from starft_hf.data.layouts.layout import CAPTION
from starft_hf.data.layouts.split_names import TEST, TRAIN, VALIDATION, split_in
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.utils.files import local_or_hub
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

_NOTHING_HELD_OUT = (
    "validation_split={share:g} has no effect: what save_to_disk has written, and datasets with a card, keep their "
    "splits. Divide them with dataset.train_test_split."
)

# Of an iterable dataset that is made from one in memory.
_SHARDS = 128

# The names of splits for validation, on the Hub.
_VALIDATION = (VALIDATION, "valid", "val", "dev")

# The names of an image and its label in WebDataset shards.
_WEB_IMAGES = ("jpg", "jpeg", "png", "webp")
_WEB_LABEL = "cls"

Splits: TypeAlias = DatasetDict | IterableDatasetDict


def load_splits(
    source: str | PathLike[str],
    config: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    caption_column: str | None = None,
    streaming: bool = False,
    validation_split: float = VALIDATION_SPLIT,
    multi_label: bool = False,
) -> Splits:
    """All splits of a dataset, by name.

    Args:
        source: a dataset on the Hub; a folder, of images in one folder per class, of images that a table lists, of
            Parquet files, of WebDataset shards, of a benchmark as it is distributed, or that `save_to_disk` has
            written; or a single table or shard. The guide "Your data" shows them all.
        config: the configuration, if there are several.
        image_column: the name for the column with the images, or the column of a table that has their paths.
        label_column: the name for the column with the labels, or the column of a table that has them.
        caption_column: the column of a table that has captions. None: "caption", or one of a table without labels that
            has a usual name, such as text or comment, which is called "caption" then.
        streaming: read rows as they are needed instead of all in advance. Of image files, the paths are.
        validation_split: the share of the rows of a folder or file that is held out as the split "validation" if there
            is only one split, for training; 0: none. It is stratified by class.
        multi_label: whether images may have several classes. Tables have them as lists, joined as in "owl|fern", in
            columns of 0 and 1, or in several rows; an empty label is of an image without any.

    Raises:
        FileNotFoundError: if neither a file nor, unless `source` looks like a path, a dataset on the Hub is found.
        ValueError: if nothing can be read as a dataset, or images have neither classes nor a table.
    """
    found = read_data(
        source,
        config,
        Wanted(image_column, label_column, multi_label, caption_column),
        streaming=streaming,
        validation_split=validation_split,
    )
    for note in found.notes:
        logger.warning("%s: %s", source, note)
    if found.left_out:
        logger.warning(left_out(found.left_out, str(source)))
    return found.splits


def left_out(files: Mapping[str, str], source: str) -> str:
    """A warning of files that were not read, of which there are some."""
    path, why = next(iter(files.items()))
    if len(files) == 1:
        return f"Of {source}, {path} is skipped: {why}."
    return f"{len(files)} files of {source} are skipped, such as {path}: {why}. `starft inspect {source}` lists them."


def read_data(
    source: str | PathLike[str],
    config: str | None = None,
    wanted: Wanted | None = None,
    *,
    streaming: bool = False,
    validation_split: float = VALIDATION_SPLIT,
    group_columns: Sequence[str] = (),
) -> DataFound:
    """`load_splits`, with where the rows are from and what was not read.

    Args:
        wanted: the columns that were asked for; None: the usual ones.
        group_columns: columns by which rows are held out as well as by their classes; empty: those that are usual.
    """
    check_share(validation_split)
    wanted = wanted or Wanted()
    path = Path(local_or_hub(source, "dataset"))
    # Their splits are those of whoever made them.
    notes = () if validation_split in (0, VALIDATION_SPLIT) else (_NOTHING_HELD_OUT.format(share=validation_split),)
    if not path.exists():
        return DataFound(_from_hub(str(source), config, streaming, wanted), notes=notes)
    if path.is_dir() and is_saved(path):
        return DataFound(_from_disk(path, config, streaming, str(source)), notes=notes)
    if path.is_dir() and has_configurations(path):
        return DataFound(_as_configured(path, config, streaming, wanted), notes=notes)
    if config is not None:
        kind = "file" if path.is_file() else "folder whose card lists no configurations"
        raise ValueError(f"{str(source)!r} is a {kind}, so there is no configuration {config!r}; omit it")
    found = _labeled(read_files(path, wanted, streaming=streaming), wanted)
    found = _with_validation(_as_training(found), wanted, validation_split, group_columns)
    if streaming and isinstance(found.splits, DatasetDict):
        # Of images in files only the paths are read in advance, so that their labels are known and they can be mixed.
        iterable = {name: _as_iterable(part) for name, part in found.splits.items()}
        found = replace(found, splits=IterableDatasetDict(iterable))
    return found


def _from_hub(source: str, config: str | None, streaming: bool, wanted: Wanted) -> Splits:
    try:
        splits = load_dataset(source, config, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"there is no folder or file {source!r} here, and no such dataset could be loaded from the Hub ({error})"
        ) from error
    return _with_standard_columns(splits, wanted)


def _as_configured(folder: Path, config: str | None, streaming: bool, wanted: Wanted) -> Splits:
    try:
        return _with_standard_columns(load_dataset(str(folder), config, streaming=streaming), wanted)
    except (DatasetsError, ValueError, FileNotFoundError) as error:
        chosen = "" if config is None else f", configuration {config!r},"
        raise ValueError(
            f"no dataset could be read from {str(folder)!r}{chosen} as its card says ({error}); correct the card, or "
            "remove it to have the files read by their names"
        ) from error


def _with_standard_columns(splits: Any, wanted: Wanted) -> Any:
    """Splits of shards on the Hub with their images and labels under the names that were asked for."""
    first = next(iter(splits.values()))
    columns = list(first.features or first.column_names or ())
    images = [name for name in _WEB_IMAGES if name in columns]
    if wanted.image not in columns and images:
        splits = splits.rename_column(images[0], wanted.image)
        if wanted.label not in columns and _WEB_LABEL in columns:
            splits = splits.rename_column(_WEB_LABEL, wanted.label)
    return splits


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written a folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _from_disk(folder: Path, config: str | None, streaming: bool, source: str) -> Splits:
    if config is not None:
        raise ValueError(
            f"{source!r} was written by save_to_disk and has no configurations, but {config!r} was chosen; omit it"
        )
    loaded = load_from_disk(str(folder))
    splits = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    if streaming:
        return IterableDatasetDict({name: part.to_iterable_dataset() for name, part in splits.items()})
    return splits


def has_configurations(folder: Path) -> bool:
    """Whether the card of a copied repository says which files are in which split."""
    card = folder / "README.md"
    if not card.is_file() or not card.read_text(encoding="utf-8", errors="replace").startswith("---"):
        return False
    return bool(DatasetCard.load(card, ignore_metadata_errors=True).data.get("configs"))


def _labeled(found: DataFound, wanted: Wanted) -> DataFound:
    """The same without rows that have no label, where others have one; as of tables of paths, they are left out."""
    if wanted.several or not isinstance(found.splits, DatasetDict):
        return found
    splits, left_out = DatasetDict(found.splits), dict(found.left_out)
    for name, rows in found.splits.items():
        # What has a caption can be trained on without a label.
        if wanted.label not in rows.column_names or not {CAPTION, wanted.caption}.isdisjoint(rows.column_names):
            continue
        values = rows.select_columns([wanted.label]).with_format("arrow")[:].column(0)
        missing = pc.is_null(values, nan_is_null=True).to_pylist()
        if any(missing) and not all(missing):
            splits[name] = rows.select([row for row, is_missing in enumerate(missing) if not is_missing])
            without = [row for row, is_missing in enumerate(missing) if is_missing]
            left_out |= {f"{name}: row {row}": "it has no label" for row in without}
    return replace(found, splits=splits, left_out=left_out)


def _as_training(found: DataFound) -> DataFound:
    """The same with its only split called "train", if its name says so, as that of "asl_alphabet_train"."""
    (name, *more) = found.splits
    if more or name == TRAIN or split_in(name) != TRAIN:
        return found
    splits = type(found.splits)({TRAIN: found.splits[name]})
    return replace(found, splits=splits, sources={TRAIN: found.sources.get(name, ())})


def _with_validation(found: DataFound, wanted: Wanted, share: float, group_columns: Sequence[str]) -> DataFound:
    """The same with rows held out of its only split, if that is for training."""
    train = found.splits.get(TRAIN)
    if share == 0 or not isinstance(train, Dataset) or len(found.splits) > 1 or len(train) < 2:
        return found
    stratify = list(dict.fromkeys((wanted.label, *(group_columns or found.group_columns))))
    stratify = [column for column in stratify if column in train.features]
    # An image may be in several rows, as with several captions, which training must not share with validation.
    images = image_paths(train, wanted.image)
    kept, chosen = held_out(train, share, stratify, images=images)
    if not chosen:
        return found
    by = " and stratified by class and group" if len(stratify) > 1 else " and stratified by class" if stratify else ""
    what = "rows" if len(set(images)) < len(images) else "images"
    note = (
        f"There is only one split: {len(chosen)} of its {len(train)} {what}, chosen at random{by}, are held out as "
        f"the split {VALIDATION!r}; validation_split says how many, 0 none."
    )
    splits = DatasetDict({TRAIN: train.select(kept), VALIDATION: train.select(chosen)})
    sources = {name: found.sources.get(TRAIN, ()) for name in splits}
    return replace(found, splits=splits, sources=sources, notes=(*found.notes, note), held_out=share)


def _as_iterable(part: Dataset) -> IterableDataset:
    # Images in folders are sorted by class: in several shards, shuffling mixes more of them than a buffer holds.
    return part.to_iterable_dataset(num_shards=max(1, min(len(part), _SHARDS)))


def choose_split(splits: Any, name: str, source: str) -> Any:
    """A split by name."""
    if name not in splits:
        raise ValueError(
            f"{source!r} has an {unknown_name('split', name, splits)} Name the one to use; on the command line by "
            "--train_split, --eval_split or --split"
        )
    return splits[name]


def evaluation_split(splits: Any) -> str | None:
    """The name of the split for evaluation, or None if no split has such a name."""
    return next((name for name in (TEST, *_VALIDATION) if name in splits), None)


def split_for_validation(splits: Any) -> str | None:
    """The name of the split to choose settings by, or None if no split has such a name."""
    return next((name for name in _VALIDATION if name in splits), None)
