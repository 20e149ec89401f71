"""Parquet files with images: their bytes, or paths to files."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, IterableDatasetDict
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.table import table_cast

from starft_hf.data.image_formats import is_image
from starft_hf.data.shards.sets import LABELS, Shards
from starft_hf.data.urls import holds_urls, is_url
from starft_hf.utils.names import check_spelling


# The names under which people keep images, in order of preference.
_IMAGES = (
    *("image", "images", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"),
    *("image_path", "img_path", "path", "file_path", "file_name", "filename", "img_filename", "file", "image_bytes"),
    *("bytes", "image_url", "url"),
)
# Of an iterable dataset of paths.
_SHARDS = 128
# Rows, and bytes of each column, that are read at a time.
_AT_ONCE, _BUFFER = 32, 2**20
# So many rows are looked at where the type of a column does not say what it holds.
_FIRST_ROWS = 100


class ArrowParquet(Parquet):
    """The reader of `datasets`, which takes categories and large values as well, and renames columns by `names`."""

    names: Mapping[str, str] = {}

    def _generate_tables(
        self, files: Sequence[str], row_groups_list: Sequence[Any] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        # That of `datasets` reads a row group at once, which may be as large as its file.
        for place, (file, groups) in enumerate(zip(files, row_groups_list or [None] * len(files), strict=True)):
            with _opened(file) as opened:
                for number, batch in enumerate(opened.iter_batches(_AT_ONCE, row_groups=groups and list(groups))):
                    yield f"{place}_{number}", self._cast_table(pa.Table.from_batches([batch]))

    def _cast_table(self, pa_table: pa.Table) -> pa.Table:
        table = _as_plain(pa_table)
        return super()._cast_table(table.rename_columns([self.names.get(name, name) for name in table.column_names]))


@dataclass(frozen=True)
class _Table:
    """The Parquet files of a split: their columns, those of images and labels and their new names."""

    files: tuple[str, ...]
    schema: pa.Schema
    image: str
    has_paths: bool
    label: str | None
    names: Mapping[str, str]

    @property
    def renamed(self) -> dict[str, str]:
        """The columns that get another name, by what they hold."""
        columns = {"Images": self.image, "Labels": self.label}
        return {what: name for what, name in columns.items() if name is not None and self.names[name] != name}


def read_parquet(
    files_by_split: Mapping[str, Sequence[str]],
    *,
    streaming: bool = False,
    image_column: str = "image",
    label_column: str = "label",
) -> Shards:
    """Read Parquet files whose rows have an image: bytes, {bytes, path} or a path, with any metadata or none.

    Paths are absolute or relative to the folder of the file. The column of images is `image_column`, else one that
    `datasets` wrote as images, else one with a usual name such as "img" or "image_path", else the only one of bytes.
    That of labels is `label_column`, else one with a usual name such as "class". Both get the names given here. Labels
    that are strings become a ClassLabel with the names of all splits.

    Args:
        files_by_split: absolute paths of Parquet files; those of a split have the same columns.
        streaming: give iterable datasets, with the files as their shards; if these hold paths, all paths are read.
        image_column: the column of images, or what to call it.
        label_column: the column of labels, or what to call it.

    Raises:
        ValueError: if a file cannot be read or has other columns, there is no column of images, or it holds URLs.
    """
    tables = {
        split: _table_of(tuple(files), image_column, label_column) for split, files in files_by_split.items() if files
    }
    class_names = _class_names(tables.values())
    left_out: dict[str, str] = {}
    splits: dict[str, Any] = {}
    notes: dict[str, None] = {}
    for split, table in tables.items():
        read = _of_paths if table.has_paths else _of_bytes
        splits[split] = read(table, _features(table, class_names), streaming, left_out)
        notes |= {f"{what} are those of column {column!r}.": None for what, column in table.renamed.items()}
    return Shards((IterableDatasetDict if streaming else DatasetDict)(splits), left_out, tuple(notes))


def _table_of(files: tuple[str, ...], image_column: str, label_column: str) -> _Table:
    schema = _schema(files[0])
    for file in files[1:]:
        other = _schema(file)
        if set(other.names) != set(schema.names):
            raise ValueError(
                f"{file!r} has the columns {other.names}, and {files[0]!r} of the same split {schema.names}; write "
                "all files of a split with the same columns, or move what is other data elsewhere"
            )
    image = _image_of(files[0], schema, image_column)
    label = label_column if label_column in schema.names else next((x for x in LABELS if x in schema.names), None)
    kind = schema.field(image).type
    has_paths = _is_text(kind) or (pa.types.is_struct(kind) and not _has_bytes(files[0], image))
    names = {image: image_column, **({} if label is None else {label: label_column})}
    return _Table(files, schema, image, has_paths, label, names)


def _opened(file: str) -> pq.ParquetFile:
    return pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)


def _schema(file: str) -> pa.Schema:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the Parquet file {file!r} cannot be read ({error}); write or copy it again") from error
    return _plain(schema)


def _plain(schema: pa.Schema) -> pa.Schema:
    """A schema without categories, large strings and large bytes."""
    return pa.schema([field.with_type(_plain_type(field.type)) for field in schema], metadata=schema.metadata)


def _as_plain(table: pa.Table) -> pa.Table:
    """A table of that schema; other columns are left alone, since casts of sliced structs fail."""
    for place, field in enumerate(table.schema):
        kind = _plain_type(field.type)
        if kind != field.type:
            table = table.set_column(place, field.with_type(kind), table.column(place).cast(kind))
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_large_binary(kind) else kind


def _image_of(file: str, schema: pa.Schema, image_column: str) -> str:
    """The name of the column of images."""
    if image_column in schema.names:
        kind = schema.field(image_column).type
        if not (_is_text(kind) or _is_binary(kind) or pa.types.is_struct(kind) or pa.types.is_list(kind)):
            raise ValueError(f"column {image_column!r} of {file!r} holds {kind} rather than images; set image_column")
        return image_column
    written = [name for name, feature in Features.from_arrow_schema(schema).items() if isinstance(feature, Image)]
    usual = [name for name in _IMAGES if name in schema.names and _may_be_images(file, schema.field(name))]
    of_bytes = [field.name for field in schema if _is_binary(field.type) or _is_struct(field.type)]
    found = written or usual or (of_bytes if len(of_bytes) == 1 else [])
    if not found:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"no column of {file!r} holds images for sure: {columns}; set image_column to the one that does"
        )
    return found[0]


def _may_be_images(file: str, field: pa.Field) -> bool:
    if not _is_text(field.type):
        return _is_binary(field.type) or _is_struct(field.type)
    first = next((str(value) for value in _first(file, field.name).to_pylist() if value is not None), "")
    return is_image(first) or is_url(first)


def _first(file: str, column: str) -> pa.Array:
    """The values of a column in the first rows."""
    with _opened(file) as opened:
        batch = next(opened.iter_batches(_FIRST_ROWS, columns=[column]), None)
    return pa.array([]) if batch is None else batch.column(0)


def _has_bytes(file: str, column: str) -> bool:
    """Whether images of structs are embedded, rather than files that the rows name."""
    return any((value or {}).get("bytes") is not None for value in _first(file, column).to_pylist())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} <= {"bytes", "path"}


def _class_names(tables: Iterable[_Table]) -> list[str]:
    """The distinct strings of the columns of labels."""
    names: set[str] = set()
    for table in tables:
        if table.label is not None and _is_text(table.schema.field(table.label).type):
            for file in table.files:
                with _opened(file) as opened:
                    column = opened.read(columns=[table.label]).column(0)
                names |= set(column.unique().to_pylist()) - {None}
            check_spelling(sorted(names), f"column {table.label!r} of {os.path.basename(table.files[0])}")
    return sorted(names)


def _features(table: _Table, class_names: list[str]) -> Features:
    features = Features.from_arrow_schema(table.schema)
    written = features[table.image]
    features[table.image] = Image(mode=written.mode if isinstance(written, Image) else None)
    if table.label is not None and _is_text(table.schema.field(table.label).type):
        features[table.label] = ClassLabel(names=class_names)
    return Features({table.names.get(name, name): feature for name, feature in features.items()})


def _of_bytes(table: _Table, features: Features, streaming: bool, left_out: dict[str, str]) -> Any:
    # Given as such, the files are not taken for patterns, which brackets in their names would make them.
    states = [(str(os.stat(file).st_mtime_ns), str(os.stat(file).st_size)) for file in table.files]
    given = DataFilesDict(train=DataFilesList(list(table.files), states))
    builder = ArrowParquet(data_files=given, features=features)
    builder.names = table.names
    if streaming:
        return builder.as_streaming_dataset(split="train")
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


def _of_paths(table: _Table, features: Features, streaming: bool, left_out: dict[str, str]) -> Any:
    parts = []
    for file in table.files:
        with _opened(file) as opened:
            rows = opened.read()
        rows = _as_plain(rows).select(table.schema.names)
        paths = rows.column(table.image)
        if pa.types.is_struct(paths.type):
            paths = pc.struct_field(paths, "path")
        found = [_resolved(path, file, table.image) for path in paths.to_pylist()]
        exists = [path is None or os.path.exists(path) for path in found]
        left_out |= {
            str(path): f"listed in {os.path.basename(file)}, but missing"
            for path, is_there in zip(found, exists, strict=True)
            if not is_there
        }
        if not any(exists):
            continue
        rows = rows.set_column(rows.schema.get_field_index(table.image), table.image, pa.array(found, pa.string()))
        rows = rows.filter(pa.array(exists, pa.bool_())).rename_columns(list(features))
        parts.append(table_cast(rows, features.arrow_schema))
    if not parts:
        example = next((f", such as {path!r}" for path in left_out), "")
        raise ValueError(
            f"none of the images that column {table.image!r} of {table.files[0]!r} lists exists{example}; paths are "
            "relative to the folder of the file"
        )
    part = Dataset(pa.concat_tables(parts), info=DatasetInfo(features=features))
    return part.to_iterable_dataset(num_shards=max(1, min(len(part), _SHARDS))) if streaming else part


def _resolved(path: str | None, file: str, column: str) -> str | None:
    """An absolute path; raises ValueError for an URL."""
    if path is None:
        return None
    if is_url(path):
        raise ValueError(holds_urls(file, column, path))
    return os.path.join(os.path.dirname(file), os.path.expanduser(path))
