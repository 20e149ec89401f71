"""Datasets from the Hub or from a folder, with the columns that the trainer expects."""

from os import PathLike
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import ClassLabel, DatasetDict, Image, IterableDatasetDict, load_dataset, load_from_disk
from transformers.utils import logging

from starft_hf.data.imagenet import names_of_ids
from starft_hf.utils.files import local_or_hub
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

# The names of an image and its label in WebDataset shards.
_WEB_IMAGES = ("jpg", "jpeg", "png", "webp")
_WEB_LABEL = "cls"

# Of an iterable dataset that is made from one in memory.
_SHARDS = 128


def load_splits(
    source: str | PathLike[str],
    config: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    streaming: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """All splits of a dataset, by name.

    Args:
        source: a dataset on the Hub, or a folder: of images in one folder per class (`train/owl/1.jpg`, with further
            columns such as groups in a `metadata.csv`), of Parquet files, of WebDataset shards, or one that
            `save_to_disk` has written.
        config: the configuration, if there are several.
        image_column: the name for the column with the images of WebDataset shards.
        label_column: the name for the column with their labels, or with the names of the folders as labels if a
            metadata file has none.
        streaming: read rows as they are needed instead of all in advance. Of images in folders, the paths are.

    Raises:
        FileNotFoundError: if neither a folder nor, unless `source` looks like a path, a dataset on the Hub is found.
        ValueError: if nothing in the folder can be read as a dataset.
    """
    folder = Path(local_or_hub(source, "dataset"))
    if not folder.exists():
        try:
            splits = load_dataset(str(source), config, streaming=streaming)
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"there is no folder {str(source)!r} here, and no such dataset could be loaded from the Hub ({error})"
            ) from error
        return _with_standard_columns(splits, image_column, label_column, local=False)
    if folder.is_file():
        raise ValueError(f"{str(source)!r} is a file; pass its folder")
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        if config is not None:
            raise ValueError(
                f"{str(source)!r} was written by save_to_disk and has no configurations, but {config!r} was chosen; "
                "leave it out"
            )
        loaded = load_from_disk(str(folder))
        splits = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
        if streaming:
            splits = IterableDatasetDict({name: part.to_iterable_dataset() for name, part in splits.items()})
    else:
        if streaming and _has_image_files(folder):
            # Of these only the paths are read in advance, so that their labels are known and they can be mixed.
            whole = load_splits(folder, config, image_column=image_column, label_column=label_column)
            return IterableDatasetDict({name: _as_iterable(part) for name, part in whole.items()})
        try:
            splits = load_dataset(str(folder), config, streaming=streaming)
        except Exception as error:
            found = sorted({path.suffix or "no ending" for path in folder.rglob("*") if path.is_file()})
            raise ValueError(
                f"no dataset could be read from {str(source)!r} ({error}); expected images in one folder per class, "
                f"*.parquet, *.tar or what save_to_disk writes, found files with {', '.join(found) or 'nothing'}"
            ) from error
    splits = _with_standard_columns(splits, image_column, label_column, local=True)
    return _with_names_of_ids(splits, label_column, folder)


def _has_image_files(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.stem != "metadata"]
    if any(path.suffix in (".parquet", ".tar") for path in files):
        return False
    return any(path.suffix.lower() in PIL.Image.registered_extensions() for path in files)


def _with_names_of_ids(splits: Any, label_column: str, folder: Path) -> Any:
    """Splits whose classes are WordNet ids with the names of these, as far as they are known."""
    feature = (next(iter(splits.values())).features or {}).get(label_column)
    if not isinstance(feature, ClassLabel) or (names := names_of_ids(feature.names, folder)) is None:
        return splits
    logger.info("Class names are WordNet ids, named as %r for %r, and so on.", names[0], feature.names[0])
    return splits.cast_column(label_column, ClassLabel(names=list(names)))


def _as_iterable(part: Any) -> Any:
    # Images in folders are sorted by class: in several shards, shuffling mixes more of them than a buffer holds.
    return part.to_iterable_dataset(num_shards=max(1, min(len(part), _SHARDS)))


def choose_split(splits: Any, name: str, source: str) -> Any:
    """A split by name."""
    if name not in splits:
        raise ValueError(f"{source!r} has an {unknown_name('split', name, splits)}")
    return splits[name]


def evaluation_split(splits: Any) -> str | None:
    """The name of the split for evaluation, or None if no split has such a name."""
    return next((name for name in ("test", "validation", "valid", "val", "dev") if name in splits), None)


def _with_standard_columns(splits: Any, image_column: str, label_column: str, *, local: bool) -> Any:
    columns = _columns(splits)
    if image_column not in columns and (images := [name for name in _WEB_IMAGES if name in columns]):
        splits = splits.rename_column(images[0], image_column)
        if label_column not in columns and _WEB_LABEL in columns:
            splits = splits.rename_column(_WEB_LABEL, label_column)
    if local and image_column in columns and label_column not in columns and isinstance(splits, DatasetDict):
        splits = _with_folders_as_labels(splits, image_column, label_column)
    return splits


def _columns(splits: Any) -> list[str]:
    first = next(iter(splits.values()))
    return list(first.features or first.column_names or ())


def _with_folders_as_labels(splits: DatasetDict, image_column: str, label_column: str) -> DatasetDict:
    """The labels that `datasets` omits if there is a metadata file: the folders of the images."""
    folders = {}
    for name, part in splits.items():
        images = part.select_columns([image_column]).cast_column(image_column, Image(decode=False))[image_column]
        folders[name] = [Path(image["path"] or "").parent.name for image in images]
    names = sorted({folder for part in folders.values() for folder in part})
    # Images in one folder have no classes.
    if len(names) < 2 or any(len(set(part)) < 2 for part in folders.values()):
        return splits
    logger.info("Labels are the names of the folders of the images: %s.", ", ".join(names))
    label = ClassLabel(names=names)
    labels = {name: [label.str2int(folder) for folder in part] for name, part in folders.items()}
    return DatasetDict(
        {name: part.add_column(label_column, labels[name], feature=label) for name, part in splits.items()}
    )
