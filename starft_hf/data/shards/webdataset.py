"""WebDataset shards: tar files in which files of one name are a sample."""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import pyarrow as pa
from datasets import (
    ArrowBasedBuilder,
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    SplitGenerator,
    Value,
)
from tqdm.auto import tqdm

from starft_hf.data.image_formats import is_image, needs_plugin
from starft_hf.data.layouts.tree import NOT_UTF8
from starft_hf.data.shards.fields import CAPTION, IMAGE, LABEL, NoSampleError, Row, fields_of_json, label_of_text
from starft_hf.data.shards.sets import Shards
from starft_hf.data.shards.tars import Sample, samples, slice_path
from starft_hf.utils.text import as_utf8


# Which of several images of a sample is the one, before others.
_IMAGES = ("jpg", "jpeg", "png", "webp")
_CLASS, _TEXTS, _JSON = "cls", ("txt", "text", "caption"), "json"
# Rows of a table of an iterable dataset.
_AT_ONCE = 256
# Seconds before listing shards shows a progress bar.
_PATIENCE = 3

KEY = "__key__"

_INTEGER, _FLOAT, _BOOLEAN, _STRING, _LIST = "int64", "float64", "bool", "string", "list"


@dataclass(frozen=True)
class Columns:
    """The columns of shards beside the image with their types, and what those of images and labels are called."""

    types: tuple[tuple[str, str], ...]
    image: str
    label: str
    class_names: tuple[str, ...] | None = None

    @property
    def features(self) -> Features:
        """The features of a dataset with these columns."""
        features = {name: [Value("string")] if kind == _LIST else Value(kind) for name, kind in self.types}
        if self.class_names is not None:
            features[self.label] = ClassLabel(names=list(self.class_names))
        return Features({self.image: Image(), **features})

    def row(self, found: Row) -> Row:
        """A row with exactly these columns."""
        row: Row = {self.image: {"bytes": None, "path": found[IMAGE]}}
        for name, kind in self.types:
            value = _as(kind, found.get(LABEL if name == self.label else name), name, found)
            is_class = name == self.label and self.class_names is not None and value is not None
            row[name] = self.class_names.index(value) if is_class and self.class_names else value
        return row


def read_webdataset(
    files_by_split: Mapping[str, Sequence[str]],
    *,
    streaming: bool = False,
    image_column: str = "image",
    label_column: str = "label",
) -> Shards:
    """Read WebDataset shards: an image, and its label and captions, in files of one name.

    The image is a jpg, jpeg, png or webp, or any other file that Pillow opens. Labels, whole numbers or words, are in
    `cls` or under "label", "class", "category" and the like in `json`; captions in `txt` or under "caption" in `json`.
    Further numbers, booleans and strings of `json` are columns. Images are not read or copied: rows hold where they
    are. Samples without an image, or that img2dataset marks as failed, are skipped. Nothing is unpickled.

    Args:
        files_by_split: absolute paths of uncompressed tar files.
        streaming: give iterable datasets, with the tar files as their shards; columns are those of the first shard of
            every split. Otherwise all shards are listed, and words as labels become a ClassLabel.
        image_column: what to call the column of images.
        label_column: what to call the column of labels.

    Raises:
        ValueError: if a tar file cannot be read, or a split has no sample with an image.
    """
    left_out: dict[str, str] = {}
    listed = {
        split: _rows(files[:1] if streaming else files, label_column, left_out)
        for split, files in files_by_split.items()
        if files
    }
    for split, rows in listed.items():
        if not rows:
            raise ValueError(_no_images(split, files_by_split[split][0], left_out))
    columns = _columns([row for rows in listed.values() for row in rows], image_column, label_column, streaming)
    notes = _notes(left_out, streaming)
    if streaming:
        streams = {split: TarSamples.stream(files_by_split[split], columns) for split in listed}
        return Shards(IterableDatasetDict(streams), left_out, notes)
    return Shards(DatasetDict({split: _table(rows, columns) for split, rows in listed.items()}), left_out, notes)


class TarSamples(ArrowBasedBuilder):
    """The reader of tar files for iterable datasets."""

    shards: Sequence[str]
    columns: Columns

    @classmethod
    def stream(cls, shards: Sequence[str], columns: Columns) -> IterableDataset:
        """An iterable dataset of the samples of `shards`."""
        builder = cls(features=columns.features)
        builder.shards, builder.columns = list(shards), columns
        return builder.as_streaming_dataset(split="train")

    def _info(self) -> DatasetInfo:
        return DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name="train", gen_kwargs={"shards": self.shards})]

    def _generate_tables(self, shards: Sequence[str]) -> Iterator[tuple[Any, pa.Table]]:
        for number, shard in enumerate(shards):
            found = _samples(shard, self.columns.label, {})
            for start in count():
                rows = [self.columns.row(row) for row in islice(found, _AT_ONCE)]
                if not rows:
                    break
                yield f"{number}_{start}", pa.Table.from_pylist(rows, schema=self.columns.features.arrow_schema)


def _table(rows: list[Row], columns: Columns) -> Dataset:
    features = columns.features
    table = pa.Table.from_pylist([columns.row(row) for row in rows], schema=features.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=features))


def _rows(files: Sequence[str], label_column: str, left_out: dict[str, str]) -> list[Row]:
    found: list[Row] = []
    for file in tqdm(files, desc="Listing shards", unit=" shards", delay=_PATIENCE, leave=False):
        found += _samples(file, label_column, left_out)
    return found


def _samples(shard: str, label_column: str, left_out: dict[str, str]) -> Iterator[Row]:
    """What is known of every sample of a shard, with the path of its image; the others are added to `left_out`."""
    has_image: dict[str, bool] = {}
    for key, members, tar in samples(shard):
        if as_utf8(key) != key:
            left_out[f"{shard}/{as_utf8(key)}"] = NOT_UTF8
            continue
        image = _image_of(members)
        if has_image.setdefault(key, image is not None) != (image is not None):
            raise ValueError(
                f"the files of sample {key!r} do not follow each other in the shard {shard!r}; write it in order of "
                "name, as tar --sort=name does"
            )
        try:
            row = _fields(shard, members, tar, label_column)
            if image is None:
                plugins = [reason for ending in members if (reason := needs_plugin(f"0.{ending}"))]
                raise NoSampleError(plugins[0] if plugins else "it has no image")
        except NoSampleError as reason:
            left_out[f"{shard}/{key}"] = str(reason)
        else:
            yield {**row, IMAGE: slice_path(shard, image), KEY: key}


def _fields(shard: str, members: Sample, tar: tarfile.TarFile, label_column: str) -> Row:
    row: Row = {}
    if _JSON in members:
        row = fields_of_json(_text(tar, members[_JSON]), f"{shard}/{members[_JSON].name}", label_column)
    if _CLASS in members:
        row[LABEL] = label_of_text(_text(tar, members[_CLASS]))
    texts = [members[ending] for ending in _TEXTS if ending in members]
    if texts:
        row[CAPTION] = _text(tar, texts[0])
    return row


def _image_of(members: Sample) -> tarfile.TarInfo | None:
    endings = [ending for ending in members if is_image(f"0.{ending}")]
    # An image beside others with names such as `mask.png` has a plain ending.
    endings.sort(key=lambda ending: (_IMAGES.index(ending) if ending in _IMAGES else len(_IMAGES), "." in ending))
    return members[endings[0]] if endings else None


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    try:
        return file.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name!r} in {tar.name!r} is not text in UTF-8 ({error}); write it anew") from error


def _columns(rows: Iterable[Row], image_column: str, label_column: str, streaming: bool) -> Columns:
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in (IMAGE, image_column) and value is not None:
                kinds.setdefault(label_column if name == LABEL else name, set()).add(_kind_of(value))
    types = {name: _common(found) for name, found in kinds.items()}
    class_names = None
    if label_column in types:
        types[label_column] = _INTEGER if types[label_column] == _INTEGER else _STRING
        if types[label_column] == _STRING and not streaming:
            class_names = tuple(sorted({str(row[LABEL]) for row in rows if row.get(LABEL) is not None}))
    return Columns(tuple(types.items()), image_column, label_column, class_names)


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return _BOOLEAN
    if isinstance(value, int):
        return _INTEGER if -(2**63) <= value < 2**63 else _STRING
    return _FLOAT if isinstance(value, float) else _LIST if isinstance(value, list) else _STRING


def _common(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    if _LIST in kinds:
        return _LIST
    return _FLOAT if kinds == {_INTEGER, _FLOAT} else _STRING


def _as(kind: str, value: Any, name: str, found: Row) -> Any:
    own = None if value is None else _kind_of(value)
    if own is None or own == kind:
        return value
    if kind == _LIST:
        return [str(value)]
    if kind == _STRING:
        return str(value)
    if kind == _FLOAT and own == _INTEGER:
        return float(value)
    raise ValueError(
        f"sample {found[KEY]!r} of {found[IMAGE].rpartition('::')[2]!r} has {value!r} for {name!r}, and the first "
        f"shard has values of type {kind}; write one type, or read the shards without streaming"
    )


def _notes(left_out: Mapping[str, str], streaming: bool) -> tuple[str, ...]:
    where = " of the first shard of every split" if streaming else ""
    return tuple(
        f"{number} samples{where} are skipped: {reason}."
        for reason, number in Counter(left_out.values()).most_common()
    )


def _no_images(split: str, shard: str, left_out: Mapping[str, str]) -> str:
    example = next((f", for example {path!r}: {reason}" for path, reason in left_out.items()), "")
    return (
        f"the shards of split {split!r} such as {shard!r} have no sample with an image{example}; expected files of "
        "one name such as 0001.jpg and 0001.cls or 0001.json"
    )
