"""Tables and lists beside class folders, found by comparing what the layouts of public datasets are read as."""

import pytest
from datasets import ClassLabel, Dataset

from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.data.loading import read_data
from tests.support.folders import classes, kinds, names_of, rows_of, table, write


CAMERAS = [f"cam_{'ab'[row % 2]}/{row}.jpg" for row in range(8)]
BIRDS = {f"{row}.jpg": ("owl", "truck")[row // 4] for row in range(8)}
DAYS = [f"day{day}/{day}{row}.jpg" for day in range(3) for row in range(10)]


def everything(folder, **wanted):
    return read_data(folder, None, Wanted(**wanted), validation_split=0)


def animals(number, *columns):
    """The first lines of a table about the images of some days."""
    return [
        ",".join([path, *(column[row % len(column)] for column in columns)]) for row, path in enumerate(DAYS[:number])
    ]


@pytest.mark.parametrize("number", [30, 27])
def test_images_of_several_classes_beside_folders(tmp_path, number):
    write(tmp_path, {**dict.fromkeys(DAYS), "labels.csv": table("file,label", animals(number, ["fox|deer", "fox"]))})
    found = everything(tmp_path, several=True)
    assert rows_of(found) == {"train": number}
    assert sorted(found.splits["train"].features["label"].feature.names) == ["deer", "fox"]


def test_a_column_that_is_named_is_read_from_whatever_rows_there_are(tmp_path):
    rows = animals(27, ["fox", "deer"], ["sun", "rain", "snow"])
    write(tmp_path, {**dict.fromkeys(DAYS), "info.csv": table("file,animal,weather", rows)})
    found = everything(tmp_path, label="animal")
    assert set(names_of(found, column="animal").values()) == {"fox", "deer"}
    assert rows_of(found) == {"train": 27}


def test_lists_of_splits_use_what_they_list(tmp_path):
    """As in MIT-67, which divides few of its images."""
    images = [f"Images/{name}/{name}{row}.jpg" for name in ("bar", "pub") for row in range(10)]
    lists = {}
    for part, rows in (("TrainImages.txt", (0, 1)), ("TestImages.txt", (2,))):
        lists[part] = "".join(f"{name}/{name}{row}.jpg\n" for name in ("bar", "pub") for row in rows)
    found = everything(write(tmp_path, {**dict.fromkeys(images), **lists}))
    assert rows_of(found) == {"train": 4, "test": 2}


@pytest.mark.parametrize("name", ["output.csv", "my_results.csv", "preds.csv"])
def test_a_table_that_is_passed_is_read_whatever_it_is_called(tmp_path, name):
    write(
        tmp_path,
        {**dict.fromkeys(CAMERAS), name: table("file,label", [f"{path},{BIRDS[path[6:]]}" for path in CAMERAS])},
    )
    assert names_of(everything(tmp_path / name)) == BIRDS


@pytest.mark.parametrize("content", ["id,name\n1,cat\n2,dog\n", "epoch,loss\n0,0.5\n1,0.4\n2,0.3\n"])
def test_numbers_that_are_names_of_images_by_chance(tmp_path, content):
    files = [f"{name}/{row}.jpg" for name in ("cat", "dog") for row in range(10)]
    found = everything(write(tmp_path, {**dict.fromkeys(files), "more.csv": content}))
    assert kinds(found) == {"cat", "dog"}


@pytest.mark.parametrize("passed", [False, True])
def test_a_table_of_splits_divides_class_folders(tmp_path, passed):
    rows = [f"{path},{('train', 'train', 'test')[row % 3]}" for row, path in enumerate(DAYS)]
    write(tmp_path, {**dict.fromkeys(DAYS), "splits.csv": table("file,split", rows)})
    found = everything(tmp_path / "splits.csv" if passed else tmp_path)
    assert rows_of(found) == {"train": 20, "test": 10}
    assert kinds(found) == {"day0", "day1", "day2"}


@pytest.mark.parametrize(
    ("heading", "column"),
    [
        ("file,duplicate_of", DAYS[:3]),
        ("file,day", ["2020-01-02", "2020-01-03"]),
        ("file,hash", ["0123456789abcdef", "0123456789abcdee"]),
        ("file,url", ["https://a.b/c", "https://a.b/d"]),
        ("file,fold", ["0", "1", "2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_a_class_is_not_asked_about(tmp_path, heading, column):
    write(tmp_path, {**dict.fromkeys(DAYS), "more.csv": table(heading, animals(30, column))})
    assert kinds(everything(tmp_path)) == {"day0", "day1", "day2"}


def test_other_names_for_the_folders_are_not_asked_about(tmp_path):
    rows = [f"{path},{path[:4].upper()}" for path in DAYS]
    write(tmp_path, {**dict.fromkeys(DAYS), "more.csv": table("file,kind", rows)})
    assert kinds(everything(tmp_path)) == {"day0", "day1", "day2"}


def test_a_list_of_some_images_in_class_folders_is_what_is_used(tmp_path):
    write(tmp_path, {**dict.fromkeys(DAYS), "keep.csv": table("file", DAYS[::3])})
    assert rows_of(everything(tmp_path)) == {"train": 10}


def test_a_table_within_every_class_folder_does_not_name_classes(tmp_path):
    tables = {
        f"day{day}/info.csv": table("file,license", [f"{day}{row}.jpg,{'ab'[row % 2]}" for row in range(10)])
        for day in range(3)
    }
    assert kinds(everything(write(tmp_path, {**dict.fromkeys(DAYS), **tables}))) == {"day0", "day1", "day2"}


def test_two_training_tables_leave_a_third_in_place(tmp_path):
    parts = {"train_a.csv": DAYS[:10], "train_b.csv": DAYS[10:20], "extra.csv": DAYS[20:]}
    tables = {
        name: table("file,label", [f"{path},{'ab'[len(path) % 2]}" for path in own]) for name, own in parts.items()
    }
    assert rows_of(everything(write(tmp_path, {**dict.fromkeys(DAYS), **tables}))) == {"train": 30}


@pytest.mark.parametrize("dtype", ["strings", "ClassLabel", "labels", "folds", "more folds", "nothing"])
def test_columns_of_parquet_that_are_called_split(tmp_path, dtype):
    write(tmp_path, ["owl/1.jpg"])
    content = (tmp_path / "owl" / "1.jpg").read_bytes()
    values = {
        "strings": ["train", "test"],
        "ClassLabel": [1, 0],
        "labels": ["coco", "voc"],
        "folds": [3, 4],
        "more folds": [0, 3],
    }
    split = values.get(dtype, [None, None]) * 4
    rows = Dataset.from_dict({"image": [{"bytes": content, "path": None}] * 8, "label": ["owl"] * 8, "split": split})
    if dtype == "ClassLabel":
        rows = rows.cast_column("split", ClassLabel(names=["test", "train"]))
    rows.to_parquet(tmp_path / "rows.parquet")
    found = everything(tmp_path / "rows.parquet", **({"label": "split"} if dtype == "labels" else {}))
    assert rows_of(found) == ({"train": 4, "test": 4} if dtype in ("strings", "ClassLabel") else {"train": 8})


@pytest.mark.parametrize(
    "names",
    [
        ("2-door coupe", "4-door sedan"),
        ("2020-spring", "2021-autumn"),
        ("20 km limit", "30 mile limit"),
        ("01_cat", "02_Cat"),
    ],
)
def test_numbers_that_mean_something_stay(tmp_path, names):
    found = everything(write(tmp_path, classes(names=names)))
    assert found.splits["train"].features["label"].names == sorted(names)


def test_a_test_set_beside_a_folder_of_the_other_splits(tmp_path):
    files = [*classes("data/train/"), *classes("data/val/"), *classes("extra_test/")]
    assert rows_of(everything(write(tmp_path, files))) == {"train": 4, "validation": 4, "extra_test": 4}


def test_one_class_without_splits_is_refused_and_an_image_beside_them_is_not(tmp_path):
    inside = [
        f"{name}/{split}/{row}.jpg" for name in ("mole", "newt") for split in ("train", "val") for row in range(2)
    ]
    assert rows_of(everything(write(tmp_path / "a", [*inside, "thumb.png"]))) == {"train": 4, "validation": 4}
    with pytest.raises(ValueError, match="'mole' has the splits train, val, and 'owl' does not"):
        everything(write(tmp_path / "b", [*inside, "owl/1.jpg"]))
