"""What is said of a dataset before a run."""

import shutil
import tarfile

import pytest
from datasets import DatasetDict, Value

from starft_hf.data.columns import ColumnSettings
from starft_hf.data.duplicates import duplicates_across
from starft_hf.data.files import DataFound
from starft_hf.data.inspection import inspect_splits
from starft_hf.data.loading import load_splits, read_data
from tests.support.tiny import CLASS_NAMES, make_dataset, write_folder, write_shards


@pytest.fixture
def photos(tmp_path):
    for seed, split in enumerate(("train", "test")):
        write_folder(tmp_path / "photos", seed=seed, split=split)
    return tmp_path / "photos"


def inspect(source, **settings):
    return inspect_splits(read_data(source), ColumnSettings(**settings), "train")


def test_counts_are_those_of_the_rows(photos):
    found = inspect(photos, group_column=["label", "place"]).as_dict()
    assert list(found["splits"]) == ["train", "test"]
    for name, rows in load_splits(photos).items():
        expected = {}
        for row in rows.remove_columns("image"):
            group = f"{rows.features['label'].int2str(row['label'])} x {row['place']}"
            expected[group] = expected.get(group, 0) + 1
        split = found["splits"][name]
        assert split["groups"] == expected
        assert (split["rows"], split["classes"], split["sources"]) == (
            16,
            sorted(CLASS_NAMES),
            [f"{name}/metadata.csv"],
        )
    assert found["left_out"] == {"count": 0, "examples": []}
    assert found["columns"] == {"image": "image", "label": "label", "group": ["label", "place"], "caption": None}


def test_classes_are_the_groups_without_a_group_column(photos):
    found = inspect(photos).as_dict()
    assert found["splits"]["train"]["groups"] == dict.fromkeys(sorted(CLASS_NAMES), 4)
    assert found["columns"]["group"] is None


def test_a_class_and_a_group_that_a_split_lacks_are_named(photos):
    shutil.rmtree(photos / "test" / "owl")
    found = inspect(photos, group_column=["label", "place"])
    assert found.splits["test"].rows == 12
    assert "The split 'test' has no images of class 'owl', group 'owl x left'" in "\n".join(found.lines())
    assert list(found.left_out.values()) == ["it is listed, but there is no such image"] * 4


def test_what_cannot_be_trained_on_is_refused(photos):
    with pytest.raises(ValueError, match="the split 'train' has no column 'species'"):
        inspect(photos, label_column="species")
    rows = make_dataset(8)
    data = DataFound(DatasetDict(train=rows.cast_column("label", Value("int64"))))
    with pytest.raises(ValueError, match="holds the label 2, but there are 2 class names"):
        inspect_splits(data, ColumnSettings(class_names=["owl", "truck"]), "train")


def test_images_in_shards_are_compared_when_that_is_asked_for(tmp_path):
    write_shards(tmp_path / "shards")
    shutil.copyfile(tmp_path / "shards" / "train-0000.tar", tmp_path / "shards" / "validation-0000.tar")
    data, settings = read_data(tmp_path / "shards"), ColumnSettings(class_names=CLASS_NAMES)
    found = inspect_splits(data, settings, "train", compares=True)
    assert [one.splits for one in found.duplicates] == [("train", "validation")] * 16
    before_training = inspect_splits(data, settings, "train")
    assert before_training.duplicates is None
    assert "was not checked; `starft inspect` does" in "\n".join(before_training.lines())


def test_what_is_left_out_of_shards_is_named_as_in_other_folders(tmp_path):
    write_shards(tmp_path / "shards")
    for name in ("README.md", "notes.npy"):
        (tmp_path / "shards" / name).touch()
    with tarfile.open(tmp_path / "shards" / "train-0001.tar", "w") as shard:
        shard.addfile(tarfile.TarInfo("7.cls"))
    assert read_data(tmp_path / "shards").left_out == {
        "notes.npy": "it is not a shard",
        "train-0001.tar/7": "it has no image",
    }


@pytest.mark.parametrize("kind", ["files", "in memory", "parquet"])
def test_duplicates_across_splits(kind, photos, tmp_path):
    train, test = sorted((photos / "train").rglob("*.png")), sorted((photos / "test").rglob("*.png"))
    shutil.copyfile(train[3], test[5])
    shutil.copyfile(train[3], test[6])
    # Within a split they are no leak.
    shutil.copyfile(train[0], train[1])
    splits = load_splits(photos)
    if kind != "files":
        for name, part in splits.items():
            part.to_parquet(tmp_path / "rows" / f"{name}.parquet")
        splits = load_splits(tmp_path / "rows")
    if kind == "in memory":
        splits = DatasetDict({name: part.select(range(len(part))) for name, part in splits.items()})
    found = duplicates_across(splits, "image")
    assert [one.splits for one in found] == [("train", "test")]
    if kind == "files":
        assert found[0].images[0] == str(train[3])
        assert found[0].images[1] in (str(test[5]), str(test[6]))
        assert "in several splits, with the same content: 1 images" in "\n".join(inspect(photos).lines())


def test_shards_in_memory_and_as_an_iterable_dataset(tmp_path):
    write_shards(tmp_path / "shards")
    found = inspect(tmp_path / "shards", class_names=CLASS_NAMES)
    assert found.as_dict()["splits"]["train"]["sources"] == ["train-0000.tar"]
    assert found.splits["test"].rows == 16
    data = read_data(tmp_path / "shards", streaming=True)
    streamed = inspect_splits(data, ColumnSettings(class_names=CLASS_NAMES), "train")
    assert streamed.as_dict()["splits"]["train"]["rows"] is None
    assert "rows unknown" in streamed.lines()[0]
