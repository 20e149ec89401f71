"""Which file is in which split: folders of images as people have them, and tables that list images."""

import json
import shutil

import pytest
from datasets import ClassLabel

from starft_hf.data.files import read_files
from starft_hf.data.layouts import FileTree
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.data.loading import load_splits, read_data
from tests.support.folders import classes, names_of, rows_of, table, write


# The files, and the rows of every split.
THREE, TWO = {"train": 4, "validation": 4, "test": 4}, {"train": 4, "test": 4}
HELD_OUT = {"train": 16, "validation": 4}
FOLDERS = {
    "upper case": ([*classes("Train/"), *classes("VAL/"), *classes("Testing/")], THREE),
    "other words": ([*classes("trainset/"), *classes("dev/"), *classes("holdout/")], THREE),
    "splits of their own": (
        [*classes("train/"), *classes("id_test/"), *classes("ood_test/"), *classes("test_shifted/")],
        {"train": 4, "id_test": 4, "ood_test": 4, "test_shifted": 4},
    ),
    "domains": ([*classes("photo/"), *classes("sketch/")], {"photo": 4, "sketch": 4}),
    "two words of one meaning": ([*classes("train/"), *classes("eval/"), *classes("test/")], {**TWO, "eval": 4}),
    "one folder of classes": (classes(size=10), HELD_OUT),
    "a training folder alone": (classes("train/", size=10), HELD_OUT),
    "wrapped by an archive": ([*classes("birds/v1.0/train/"), *classes("birds/v1.0/test/")], TWO),
    "wrapped by a word": ([*classes("my-test-set/train/"), *classes("my-test-set/test/")], TWO),
    "a class called train": (classes(names=("train", "bus", "valid", "car"), size=4), {"train": 12, "validation": 4}),
    "classes called as splits": (
        [*classes("train/", ("train", "valid")), *classes("test/", ("train", "valid"))],
        TWO,
    ),
    "words in file names": (
        ["owl/train station.jpg", "owl/b.jpg", "fern/test.jpg", "fern/c.jpg"],
        {"train": 3, "validation": 1},
    ),
    "folders in class folders": (
        ["dog/poodle/1.jpg", "dog/beagle/2.jpg", "cat/siamese/3.jpg", "cat/4.jpg"],
        {"train": 3, "validation": 1},
    ),
    "brackets": ([*classes("a[1]/train/", ("owl [x]", "fern*")), *classes("a[1]/test/", ("owl [x]", "fern*"))], TWO),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_splits_of_folders(name, tmp_path):
    files, expected = FOLDERS[name]
    found = read_data(write(tmp_path, files))
    assert rows_of(found) == expected
    assert not found.left_out
    # Every image is opened, and is the one of its path.
    assert all(row["image"].size == (8, 8) for rows in found.splits.values() for row in rows)


def test_classes_are_those_of_all_splits_by_the_folder_below_the_split(tmp_path):
    found = read_data(write(tmp_path, ["train/dog/poodle/1.jpg", "train/cat/2.jpg", "test/dog/3.jpg"]))
    assert {name: rows.features["label"] for name, rows in found.splits.items()} == {
        "train": ClassLabel(names=["cat", "dog"]),
        "test": ClassLabel(names=["cat", "dog"]),
    }
    assert names_of(found) == {"1.jpg": "dog", "2.jpg": "cat"}
    assert names_of(found, "test") == {"3.jpg": "dog"}


def test_what_is_left_out_is_named_with_the_reason(tmp_path):
    files = [
        *classes("train/"),
        *classes("test/"),
        "train/5.jpg",
        "train/.DS_Store",
        "train/owl/movie.mp4",
        "README.md",
    ]
    root = write(tmp_path, [*files, "unlabeled/6.jpg"])
    (root / "train" / "owl" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    assert dict(read_data(root).left_out) == {
        "train/.DS_Store": "it is hidden",
        "train/owl/gone.jpg": "it is a link to nothing",
        "train/owl/movie.mp4": "it is not an image",
        "train/5.jpg": "it lies in no class folder",
        "unlabeled/6.jpg": "it lies in no class folder",
    }


def test_links_to_folders_are_followed_once(tmp_path):
    root = write(tmp_path / "data", classes("train/"))
    (root / "train" / "owl" / "again").symlink_to(root / "train")
    (root / "test").symlink_to(root / "train")
    tree = FileTree(root)
    assert len(tree.images) == 8
    shutil.rmtree(root / "train" / "fern")
    assert {name: len(rows) for name, rows in load_splits(root, validation_split=0).items()} == {"train": 2, "test": 2}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["train/1.jpg", "test/2.jpg"], "Put every class into a folder of its own, as in train/owl/1.jpg"),
        (["1.jpg", "2.jpg"], "Put every class into a folder of its own"),
        (
            {"train/1.jpg": None, "test/2.jpg": None, "labels.csv": "a,b,c\n1,2,3\n"},
            "labels.csv lists images in its column 'a'",
        ),
        ({"train/1.jpg": None, "test/2.jpg": None, "labels.mat": "-"}, "Beside them lies 'labels.mat'"),
    ],
)
def test_images_without_classes_are_refused(files, named, tmp_path):
    with pytest.raises(ValueError, match="have no classes: they lie in no class folders") as error:
        read_data(write(tmp_path, files))
    assert named in str(error.value)


NUMBERS = range(10)
IMAGES = {f"images/{number:03}.JPG": None for number in NUMBERS}
KINDS = [("owl", "NA")[number % 2] for number in NUMBERS]

TABLES = {
    "Kaggle: ids without endings": table("id,label", (f"{n:03},{k}" for n, k in zip(NUMBERS, KINDS, strict=True))),
    "names in lower case": table("file,class", (f"{n:03}.jpg,{k}" for n, k in zip(NUMBERS, KINDS, strict=True))),
    "paths": table("kind,label,path", (f"x,{k},images/{n:03}.JPG" for n, k in zip(NUMBERS, KINDS, strict=True))),
    "paths of Windows": table("path,label", (rf"images\{n:03}.JPG,{k}" for n, k in zip(NUMBERS, KINDS, strict=True))),
    "semicolons": table("image;label", (f"./images/{n:03}.JPG;{k}" for n, k in zip(NUMBERS, KINDS, strict=True))),
    "numbers with names": table(
        "id,label,label_name", (f"{n:03},{KINDS.index(k)},{k}" for n, k in zip(NUMBERS, KINDS, strict=True))
    ),
    "any column": table("id,breed", (f"{n:03},{k}" for n, k in zip(NUMBERS, KINDS, strict=True))),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("alone", [True, False], ids=["the table", "its folder"])
def test_tables_of_images(name, alone, tmp_path):
    write(tmp_path, {**IMAGES, "train.csv": TABLES[name], "notes.txt": "-"})
    found = read_data(tmp_path / "train.csv" if alone else tmp_path, validation_split=0)
    assert names_of(found) == {f"{n:03}.JPG": kind for n, kind in zip(NUMBERS, KINDS, strict=True)}
    assert not found.left_out


def test_tables_of_other_formats(tmp_path):
    pairs = list(zip(NUMBERS, KINDS, strict=True))
    write(tmp_path, IMAGES)
    records = [{"file_name": f"images/{n:03}.JPG", "label": kind, "day": "2020-01-02"} for n, kind in pairs]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = read_data(tmp_path, validation_split=0)
    assert dict(names_of(found)) == {f"{n:03}.JPG": kind for n, kind in pairs}
    assert found.splits["train"]["day"][0] == "2020-01-02"
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "all.tsv").write_text(table("file_name\tlabel", (f"{n:03}\t{kind}" for n, kind in pairs)))
    assert names_of(read_data(tmp_path, validation_split=0)) == names_of(found)
    assert names_of(read_data(tmp_path / "all.tsv", validation_split=0)) == names_of(found)
    found.splits["train"].remove_columns("image").add_column(
        "path", [f"images/{n:03}.JPG" for n in NUMBERS]
    ).to_parquet(tmp_path / "all.parquet")
    assert names_of(read_data(tmp_path / "all.parquet", validation_split=0))


@pytest.mark.parametrize("values", [("0", "1", "2"), ("Train", "val", "TEST"), ("training", "dev", "eval")])
def test_a_column_names_the_split(values, tmp_path):
    rows = (f"{n:03},{kind},{values[n % 3]}" for n, kind in zip(NUMBERS, KINDS, strict=True))
    write(tmp_path, {**IMAGES, "metadata.csv": table("id,label,split", [*rows, "010,owl,"])})
    found = read_data(write(tmp_path, ["images/010.JPG"]))
    assert rows_of(found) == {"train": 4, "validation": 3, "test": 3}
    assert found.left_out == {"images/010.JPG": "it is listed without a split"}


def test_kaggle_with_tables_for_submission_and_without_labels(tmp_path):
    files = {f"train_images/{n}.jpg": None for n in NUMBERS} | {f"test_images/{n}.jpg": None for n in range(3)}
    files["train.csv"] = table("image_id,label", (f"{n}.jpg,{kind}" for n, kind in zip(NUMBERS, KINDS, strict=True)))
    files["test.csv"] = table("image_id", (f"{n}.jpg" for n in range(3)))
    files["sample_submission.csv"] = table("image_id,label", (f"{n}.jpg,owl" for n in range(3)))
    found = read_data(write(tmp_path, files), validation_split=0)
    assert names_of(found) == {f"{n}.jpg": kind for n, kind in zip(NUMBERS, KINDS, strict=True)}
    assert all("train_images" in row["path"] for row in found.splits["train"].data["image"].to_pylist())
    assert {name for name in found.left_out if name.startswith("test_images")} == {
        f"test_images/{n}.jpg" for n in range(3)
    }


def test_metadata_beside_class_folders_and_what_it_does_not_list(tmp_path):
    files = dict.fromkeys(classes("train/") + classes("test/", ("owl",)))
    files["train/metadata.csv"] = table("file_name,place", [f"{path},left" for path in classes()])
    files["test/metadata.csv"] = table("file_name,place", ["owl/0.jpg,right", "owl/7.jpg,right"])
    found = read_data(write(tmp_path, files))
    assert rows_of(found) == {"train": 4, "test": 1}
    assert found.splits["test"].features["label"].names == ["fern", "owl"]
    assert found.splits["test"]["place"][0] == "right"
    assert found.left_out == {
        "test/metadata.csv: owl/7.jpg": "it is listed, but there is no such image",
        "test/owl/1.jpg": "no table lists it",
    }


def test_labels_of_a_table_rather_than_of_class_folders(tmp_path):
    """As in Waterbirds, whose folders are those of 200 species."""
    files = dict.fromkeys(classes("", ("001.albatross", "002.wren", "003.jay"), 2))
    files["metadata.csv"] = table("img_filename,water", [f"{path},{int('alba' in path)}" for path in files])
    found = read_data(write(tmp_path, files), None, Wanted(label="water"), validation_split=0)
    assert sorted(found.splits["train"]["water"]) == [0, 0, 0, 0, 1, 1]


def test_rows_without_a_label_are_left_out(tmp_path):
    rows = [f"{n:03},{'' if n == 3 else kind}" for n, kind in zip(NUMBERS, KINDS, strict=True)]
    found = read_data(write(tmp_path, {**IMAGES, "train.csv": table("id,label", rows)}), validation_split=0)
    assert found.left_out == {"images/003.JPG": "it has no label"}
    assert len(found.splits["train"]) == 9


def test_two_tables_of_the_same_images_are_refused(tmp_path):
    both = dict.fromkeys(("a.csv", "b.csv"), TABLES["paths"])
    with pytest.raises(ValueError, match=r"both a.csv and b.csv list the image images/000.JPG; pass the right one"):
        read_data(write(tmp_path, {**IMAGES, **both}))


def test_another_table_beside_splits_of_class_folders(tmp_path):
    files = dict.fromkeys(classes("train/") + classes("test/"))
    files["checked.csv"] = table("file,label", ["train/owl/0.jpg,good", "train/owl/1.jpg,bad"])
    found = read_data(write(tmp_path, files))
    assert rows_of(found) == {"train": 4, "test": 4}
    assert found.left_out == {"checked.csv": "it is a table that does not list images with labels"}


def test_a_table_of_urls_is_refused_with_the_reason(tmp_path):
    write(tmp_path, {"train.csv": table("url,label", ["https://x.org/1.jpg,owl", "https://x.org/2.jpg,fern"])})
    for source in (tmp_path, tmp_path / "train.csv"):
        with pytest.raises(ValueError, match=r"'url' of 'train.csv' holds URLs .* --input_format csv --url_col url"):
            read_data(source)


def test_a_table_outside_of_the_folder_of_images(tmp_path):
    write(tmp_path, IMAGES)
    rows = [f"../images/{n:03}.JPG,{kind}" for n, kind in zip(NUMBERS, KINDS, strict=True)]
    write(tmp_path / "lists", {"train.csv": table("path,label", rows), "val.csv": table("path,label", rows[:3])})
    assert rows_of(read_data(tmp_path / "lists")) == {"train": 10, "validation": 3}
    assert rows_of(read_data(tmp_path / "lists" / "train.csv", validation_split=0)) == {"train": 10}


def test_files_are_read_in_the_same_order_with_the_same_fingerprint(tmp_path):
    """The cache of the reference is keyed by it."""
    root = write(tmp_path, classes("train/"))
    first, again = (load_splits(root)["train"] for _ in range(2))
    assert first._fingerprint == again._fingerprint


def test_a_folder_that_holds_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match=r"no dataset could be read from .* found files with \.npy"):
        read_files(write(tmp_path, ["a.npy"]), Wanted(), streaming=False)
