"""WebDataset and Parquet shards by lists of files: every way in which people keep images, labels and captions."""

import gzip
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, DatasetDict, Image, IterableDatasetDict, Value

from starft_hf.data.fingerprint import images_fingerprint
from starft_hf.data.shards import read_parquet, read_webdataset, without_metadata_of_shards
from tests.support.shards import encoded, write_tar
from tests.support.tiny import CLASS_NAMES, make_dataset


ROWS = list(make_dataset(8))
IMAGES = [row["image"] for row in ROWS]
NAMES = [CLASS_NAMES[row["label"]] for row in ROWS]
BYTES = [encoded(image) for image in IMAGES]
# Of a folder whose name is a pattern.
ODD = "data [train] *?"
STREAMING = pytest.mark.parametrize("streaming", [False, True], ids=["", "streaming"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def rows_of(shards, split="train", label="label"):
    part = shards.splits[split]
    assert isinstance(shards.splits, IterableDatasetDict if not hasattr(part, "num_rows") else DatasetDict)
    assert part.features["image"] == Image()
    feature = part.features.get(label)
    rows = list(part)
    if isinstance(feature, ClassLabel):
        rows = [{**row, label: feature.int2str(row[label])} for row in rows]
    return rows


def same_images(rows, images=IMAGES):
    assert len(rows) == len(images)
    for row, image in zip(rows, images, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"].convert("RGB")), np.asarray(image))


# Of every row: the members beside its image, and the label that is read.
LABELS = {
    "integers": ([({"cls": str(row["label"])}, row["label"]) for row in ROWS], Value("int64")),
    "words": ([({"cls": f"{name}\n"}, name) for name in NAMES], None),
    "mixed": ([({"cls": text}, text) for text in ["3", "owl"] * 4], None),
    "json words": ([({"json": {"label": name, "place": "sea"}}, name) for name in NAMES], None),
    "json class": ([({"json": {"class": row["label"]}}, row["label"]) for row in ROWS], Value("int64")),
    "json class_name": ([({"json": {"class_name": name}}, name) for name in NAMES], None),
    "json category": ([({"json": {"category": name}}, name) for name in NAMES], None),
}


@STREAMING
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_webdataset(kind, streaming, tmp_path):
    labels, feature = LABELS[kind]
    members = {}
    for number, (more, _) in enumerate(labels):
        members[f"d/{number:03}.png"] = BYTES[number]
        members |= {f"d/{number:03}.{ending}": content for ending, content in more.items()}
    path = write_tar(tmp_path / ODD / "a.tar", members)
    shards = read_webdataset({"train": [path], "id test": [path]}, streaming=streaming)
    assert (list(shards.splits), shards.left_out) == (["train", "id test"], {})
    rows = rows_of(shards)
    same_images(rows)
    assert [row["label"] for row in rows] == [label for _, label in labels]
    words = Value("string") if streaming else ClassLabel(names=sorted({label for _, label in labels}, key=str))
    assert shards.splits["id test"].features["label"] == (feature or words)
    assert all(row.get("place") == ("sea" if kind == "json words" else None) for row in rows)


@STREAMING
def test_images_of_several_types_in_one_shard(streaming, tmp_path):
    members = {}
    for number, image in enumerate(IMAGES):
        kind = ("JPEG", "PNG", "WEBP", "BMP")[number % 4]
        ending = ("JPG", "png", "webp", "bmp")[number % 4]
        members[f"{number}.mask.png"] = BYTES[0]
        members[f"{number}.{ending}"] = encoded(image, kind)
        members[f"{number}.cls"] = str(number % 4)
    members |= {"8.png": BYTES[1], "8.jpg": encoded(IMAGES[2], "JPEG"), "8.txt": "both"}
    shards = read_webdataset({"train": [write_tar(tmp_path / "a.tar", members)]}, streaming=streaming)
    rows = rows_of(shards)
    assert [row["image"].format for row in rows] == ["JPEG", "PNG", "WEBP", "BMP"] * 2 + ["JPEG"]
    same_images([row for number, row in enumerate(rows) if number % 4 in (1, 3)], [IMAGES[n] for n in (1, 3, 5, 7)])
    assert [row["label"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3, None]
    assert rows[-1]["caption"] == "both"


@STREAMING
def test_what_img2dataset_writes(streaming, tmp_path):
    folder = tmp_path / ODD
    members = {}
    for number in range(5):
        key = f"{number:09}"
        status = "failed_to_download" if number == 1 else "success"
        members[f"{key}.json"] = {
            **{"url": f"https://example.org/{number}.jpg", "caption": f"json {number}", "key": key, "status": status},
            **{"error_message": None, "width": 24, "exif": '{"Image Make": "x"}', "box": [1, 2]},
        }
        if number != 1:
            members[f"{key}.jpg"] = encoded(IMAGES[number], "JPEG")
        if number != 2:
            members[f"{key}.txt"] = f"text {number}"
    write_tar(folder / "00000.tar", {**members, "000000009.txt": "alone"})
    pd.DataFrame({"url": ["https://example.org"], "caption": ["x"]}).to_parquet(folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    files, metadata = without_metadata_of_shards(sorted(map(str, folder.iterdir())))
    assert files == [str(folder / "00000.tar")]
    assert set(metadata) == {str(folder / "00000.parquet"), str(folder / "00000_stats.json")}
    assert set(metadata.values()) == {"metadata of 00000.tar"}
    shards = read_webdataset({"train": files}, streaming=streaming)
    assert list(shards.left_out.values()) == ["its status is 'failed_to_download'", "it has no image"]
    where = " of the first shard of every split" if streaming else ""
    assert f"1 samples{where} are skipped: it has no image." in shards.notes
    rows = rows_of(shards)
    assert [row["caption"] for row in rows] == ["text 0", "json 2", "text 3", "text 4"]
    assert {"url", "key", "width", "exif", "__key__"} < set(rows[0])
    assert not {"label", "box", "error_message"} & set(rows[0])


def test_tables_beside_folders_of_images_are_metadata_and_others_are_not():
    files = ["/d/0.parquet", "/d/0/1.jpg", "/d/0_stats.json", "/d/1.parquet", "/d/train_stats.parquet"]
    assert without_metadata_of_shards(files)[0] == ["/d/0/1.jpg", "/d/1.parquet", "/d/train_stats.parquet"]


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@STREAMING
def test_nothing_is_unpickled(streaming, tmp_path):
    bomb = pickle.dumps(Bomb())
    members = {
        "._0.png": b"",
        "./0.png": BYTES[0],
        "./0.cls": "0",
        **{f"./0.{ending}": bomb for ending in ("pkl", "pyd", "pth", "npy")},
    }
    shards = read_webdataset({"train": [write_tar(tmp_path / "a.tar", members)]}, streaming=streaming)
    assert set(rows_of(shards)[0]) == {"image", "label", "__key__"}


def cut(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])


def damaged(path):
    content = bytearray(path.read_bytes())
    start = content.index(b"1.png")
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)


BAD_SHARDS = {
    "cut off": (lambda path: cut(path, 1000), "cannot be read .*write or copy it again"),
    "damaged within": (damaged, "it is damaged at byte"),
    "compressed": (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "it is compressed.*gunzip it"),
    "not a tar file": (lambda path: path.write_bytes(b"no"), "cannot be read"),
    "a sample twice": ({"0.png": BYTES[0], "0.PNG": BYTES[0]}, r"has '0\.PNG' twice"),
    "json": ({"0.png": BYTES[0], "0.json": "{"}, r"0\.json' is not JSON"),
    "not text": ({"0.png": BYTES[0], "0.cls": b"\xff\xfe\xff"}, r"'0\.cls' in .* is not text in UTF-8"),
    "labels": ({"0.png": BYTES[0], "0.json": {"label": [0, 1]}}, "several labels under 'label'"),
    "in order of type": ({"0.png": BYTES[0], "1.png": BYTES[1], "0.cls": "0"}, "files of sample '0' do not follow"),
    "labels first": ({"0.cls": "0", "1.cls": "0", "0.png": BYTES[0]}, "files of sample '0' do not follow .*sort=name"),
    "no image": ({"0.txt": "a"}, r"of split 'train' such as .* have no sample with an image.*it has no image"),
}


@STREAMING
@pytest.mark.parametrize("case", BAD_SHARDS)
def test_what_is_wrong_with_a_shard(case, streaming, tmp_path):
    change, message = BAD_SHARDS[case]
    members = change if isinstance(change, dict) else {"0.png": BYTES[0], "1.png": BYTES[1]}
    path = write_tar(tmp_path / "a.tar", members)
    if not isinstance(change, dict):
        change(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=message):
        read_webdataset({"train": [path]}, streaming=streaming)


def test_a_later_shard_of_another_type_is_an_error_that_names_the_sample(tmp_path):
    paths = [write_tar(tmp_path / f"{label}.tar", {"x.png": BYTES[0], "x.cls": label}) for label in ("1", "owl")]
    rows = iter(read_webdataset({"train": paths}, streaming=True).splits["train"])
    assert next(rows)["label"] == 1
    with pytest.raises(ValueError, match=r"sample 'x' of .*owl\.tar' has 'owl' for 'label'.*int64"):
        next(rows)
    assert read_webdataset({"train": paths}).splits["train"].features["label"].names == ["1", "owl"]


def test_the_fingerprint_of_images_in_a_shard_changes_with_it(tmp_path):
    def fingerprint(image):
        path = write_tar(tmp_path / "a.tar", {"0.png": encoded(image), "0.cls": "0"})
        return images_fingerprint(read_webdataset({"train": [path]}).splits["train"], "image")

    first = fingerprint(IMAGES[0])
    assert first != fingerprint(IMAGES[0].resize((30, 30)))


def test_the_columns_are_called_as_asked_and_own_names_come_first(tmp_path):
    row = {"species": "owl", "label": 3}
    path = write_tar(tmp_path / "a.tar", {"0.png": BYTES[0], "0.json": row})
    part = read_webdataset({"train": [path]}, image_column="photo", label_column="species").splits["train"]
    assert part.features["species"].names == ["owl"]
    assert set(part.column_names) == {"photo", "species", "label", "__key__"}


def struct(embedded=True, kind=None):
    paths = [f"i/{number}.png" for number in range(8)]
    rows = [{"bytes": content if embedded else None, "path": path} for content, path in zip(BYTES, paths, strict=True)]
    return pa.array(rows, kind or pa.struct({"bytes": pa.binary(), "path": pa.string()}))


PATHS = [f"i/{number}.png" for number in range(8)]
# The name and the values of a column of images.
IMAGE_COLUMNS = {
    "bytes": ("image", pa.array(BYTES)),
    "large bytes": ("img", pa.array(BYTES, pa.large_binary())),
    "bytes of any name": ("payload", pa.array(BYTES)),
    "struct": ("image", struct()),
    "struct of bytes alone": ("jpg", pa.array([{"bytes": content} for content in BYTES])),
    "struct of large types": (
        "image",
        struct(kind=pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})),
    ),
    "struct of paths": ("image", struct(embedded=False)),
    "paths": ("file_name", pa.array(PATHS)),
    "large paths": ("image_path", pa.array(PATHS, pa.large_string())),
    "categories of paths": ("path", pa.array(PATHS).dictionary_encode()),
}


@STREAMING
@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
def test_images_of_parquet(kind, streaming, tmp_path):
    name, column = IMAGE_COLUMNS[kind]
    folder = tmp_path / ODD
    (folder / "i").mkdir(parents=True)
    for number, content in enumerate(BYTES):
        (folder / "i" / f"{number}.png").write_bytes(content)
    # Row groups of three, and a column of text that is not the images.
    more = {"name": pa.array(NAMES), "label": pa.array(NAMES).dictionary_encode(), "n": pa.array(range(8))}
    pq.write_table(pa.table({"note": pa.array(["a"] * 8), name: column, **more}), folder / "a[0].parquet", 3)
    files = [str(folder / "a[0].parquet")]
    shards = read_parquet({"train": files, "id-test": files}, streaming=streaming)
    assert shards.notes == (() if name == "image" else (f"Images are those of column {name!r}.",))
    assert set(shards.splits["id-test"].features) == {"note", "image", *more}
    rows = rows_of(shards)
    same_images(rows)
    assert [row["label"] for row in rows] == NAMES
    assert [row["n"] for row in rows] == list(range(8))


LABEL_COLUMNS = {
    "strings": (pa.array(NAMES), sorted(CLASS_NAMES)),
    "large strings": (pa.array(NAMES, pa.large_string()), sorted(CLASS_NAMES)),
    "integers": (pa.array([row["label"] for row in ROWS], pa.int8()), None),
}


@STREAMING
@pytest.mark.parametrize("kind", LABEL_COLUMNS)
def test_labels_of_parquet_are_those_of_all_splits(kind, streaming, tmp_path):
    column, names = LABEL_COLUMNS[kind]
    table = pa.table({"image": pa.array(BYTES), "category": column})
    pq.write_table(table.slice(0, 2), tmp_path / "a.parquet")
    pq.write_table(table.slice(2), tmp_path / "b.parquet")
    files = {"train": [str(tmp_path / "a.parquet")], "test": [str(tmp_path / "b.parquet")]}
    shards = read_parquet(files, streaming=streaming)
    assert shards.notes == ("Labels are those of column 'category'.",)
    for split in files:
        feature = shards.splits[split].features["label"]
        assert feature == (Value("int8") if names is None else ClassLabel(names=names))
    labels = [row["label"] for split in files for row in rows_of(shards, split)]
    assert labels == (NAMES if names is not None else [row["label"] for row in ROWS])


@STREAMING
def test_parquet_that_datasets_wrote_keeps_its_features(streaming, tmp_path):
    written = make_dataset(8).rename_column("image", "shot")
    written.to_parquet(tmp_path / "a.parquet")
    part = read_parquet({"train": [str(tmp_path / "a.parquet")]}, streaming=streaming).splits["train"]
    assert part.features == make_dataset(1).features
    same_images(list(part))


@STREAMING
def test_paths_to_nothing_are_left_out_and_those_to_the_web_refused(streaming, tmp_path):
    def read(paths):
        pd.DataFrame({"image": paths, "label": [0] * len(paths)}).to_parquet(tmp_path / "a.parquet")
        return read_parquet({"train": [str(tmp_path / "a.parquet")]}, streaming=streaming)

    (tmp_path / "0.png").write_bytes(BYTES[0])
    shards = read([str(tmp_path / "0.png"), "1.png", "0.png"])
    assert shards.left_out == {str(tmp_path / "1.png"): "listed in a.parquet, but missing"}
    same_images(rows_of(shards), [IMAGES[0]] * 2)
    with pytest.raises(ValueError, match=r"none of the images that column 'image' .* lists exists, such as .*1\.png"):
        read(["1.png"])
    for url in ("https://example.org/1.png", "s3://bucket/1.png", "gs://bucket/1", "hf://datasets/a/b/1.png"):
        with pytest.raises(
            ValueError, match=r"holds URLs such as .*downloaded in every epoch.*img2dataset --url_list"
        ):
            read(["0.png", url])
    pd.DataFrame({"caption": ["a"], "url": ["https://example.org/1"]}).to_parquet(tmp_path / "web.parquet")
    with pytest.raises(ValueError, match=r"column 'url' .* holds URLs"):
        read_parquet({"train": [str(tmp_path / "web.parquet")]}, streaming=streaming)


def test_what_is_wrong_with_parquet_files(tmp_path):
    def path(name, **columns):
        pd.DataFrame(columns).to_parquet(tmp_path / name)
        return str(tmp_path / name)

    good = path("good.parquet", image=BYTES[:1], label=[0])
    other = path("other.parquet", image=BYTES[:1], place=["sea"])
    with pytest.raises(ValueError, match=r"other\.parquet' has the columns \['image', 'place'\], and .*good"):
        read_parquet({"train": [good, other]})
    with pytest.raises(
        ValueError, match=r"no column of .* holds images for sure: a \(int64\), b \(string\); set image"
    ):
        read_parquet({"train": [path("none.parquet", a=[1], b=["x"])]})
    with pytest.raises(ValueError, match=r"column 'image' of .* holds int64 rather than images"):
        read_parquet({"train": [path("numbers.parquet", image=[1])]})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"bad\.parquet' cannot be read .*write or copy it again"):
        read_parquet({"train": [good, str(tmp_path / "bad.parquet")]})


def test_a_file_that_changed_is_read_anew(tmp_path):
    def label(value):
        pd.DataFrame({"image": BYTES[:1], "label": [value]}).to_parquet(tmp_path / "a.parquet")
        return read_parquet({"train": [str(tmp_path / "a.parquet")]}).splits["train"][0]["label"]

    assert [label(3), label(4)] == [3, 4]
