"""What reading shards gives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from datasets import DatasetDict, IterableDatasetDict


# The names under which people keep labels, in order of preference.
LABELS = ("label", "labels", "class", "cls", "class_name", "category", "target")


@dataclass(frozen=True)
class Shards:
    """The splits of a dataset in shards.

    Attributes:
        splits: the splits by name, with the image column cast to `datasets.Image()`.
        left_out: why samples, or files that a table lists, were not read, by what names them. Of iterable datasets,
            only the first shard of every split is read in advance.
        notes: what was decided, in sentences for the user.
    """

    splits: DatasetDict | IterableDatasetDict
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def without_metadata_of_shards(files: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The files without what img2dataset writes beside its shards, and why those tables and statistics are not data.

    `00000.parquet`, `00000.csv` and `00000_stats.json` describe `00000.tar`, or the images in the folder `00000`.
    """
    files = list(files)
    shards = {str(PurePath(file).with_suffix("")): PurePath(file).name for file in files if file.endswith(".tar")}
    shards |= {str(folder): f"{folder.name}/" for folder in {PurePath(file).parent for file in files}}
    left_out = {}
    for file in files:
        path = PurePath(file)
        stem = path.stem.removesuffix("_stats") if path.suffix == ".json" else path.stem
        shard = shards.get(str(path.with_name(stem)))
        if shard is not None and (path.suffix in (".parquet", ".csv") or path.stem.endswith("_stats")):
            left_out[file] = f"metadata of {shard}"
    return [file for file in files if file not in left_out], left_out
