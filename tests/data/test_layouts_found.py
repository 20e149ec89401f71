"""Layouts that were once read as something else: tables beside folders, splits within classes, numbered classes."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, Image
from PIL import Image as PILImage

from starft_hf.data.duplicates import are_embedded, duplicates_across
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.data.loading import choose_split, load_splits, read_data
from starft_hf.data.rgb import as_rgb, upright_size
from starft_hf.utils.names import spelling
from tests.support.folders import classes, kinds, names_of, rows_of, table, write
from tests.support.layouts import write_celeba


CAMERAS = [f"cam_{'ab'[row % 2]}/{row}.jpg" for row in range(8)]
BIRDS = {f"{row}.jpg": ("owl", "truck")[row // 4] for row in range(8)}


def listing(heading, sep=","):
    return table(heading, [f"{path}{sep}{BIRDS[path.rpartition('/')[2]]}" for path in CAMERAS])


def everything(folder, **wanted):
    return read_data(folder, None, Wanted(**wanted), validation_split=0)


@pytest.mark.parametrize("heading", ["file,Vogelart", "file,label", "file,Vogelart,Kamera"])
def test_a_table_that_is_passed_is_never_left_for_folders(tmp_path, heading):
    rows = listing(heading).replace("owl", "owl,x").replace("truck", "truck,y") if "Kamera" in heading else None
    write(tmp_path, {**dict.fromkeys(CAMERAS), "labels.csv": rows or listing(heading)})
    if "Kamera" in heading:
        with pytest.raises(ValueError, match=r"its columns Vogelart, Kamera.* has the labels.*label_column"):
            everything(tmp_path / "labels.csv")
        assert names_of(everything(tmp_path / "labels.csv", label="Vogelart"), column="Vogelart") == BIRDS
    else:
        assert names_of(everything(tmp_path / "labels.csv")) == BIRDS


def test_a_column_that_may_be_the_classes_or_not_is_asked_about(tmp_path):
    write(tmp_path, {**dict.fromkeys(CAMERAS), "labels.csv": listing("file,Vogelart")})
    with pytest.raises(ValueError, match=r"folders \('cam_a', 'cam_b'\) or what labels.csv says \('owl', 'truck'\)"):
        everything(tmp_path)
    assert names_of(everything(tmp_path, label="Vogelart"), column="Vogelart") == BIRDS
    flags = table("file,healthy,rust", [f"{path},{int(row < 4)},{int(row >= 4)}" for row, path in enumerate(CAMERAS)])
    (tmp_path / "labels.csv").write_text(flags)
    with pytest.raises(ValueError, match=r"or what labels.csv says \('healthy', 'rust'\)"):
        everything(tmp_path)
    assert kinds(everything(tmp_path / "labels.csv")) == {"healthy", "rust"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (table("file,width", [f"{path},{20 + row}" for row, path in enumerate(CAMERAS)]), None),
        (table("file,author,note", [f"{path},A,B" for path in CAMERAS]), "the columns author, note"),
        (table("file,caption", [f"{path},a caption" for path in CAMERAS]), None),
        (table("file,kind", [f"{path},{path.partition('/')[0]}" for path in CAMERAS]), None),
    ],
    ids=["numbers", "several columns", "captions", "the folders"],
)
def test_other_tables_beside_class_folders_change_nothing(tmp_path, content, said):
    write(tmp_path, {**dict.fromkeys(CAMERAS), "more.csv": content})
    found = everything(tmp_path)
    assert kinds(found) == {"cam_a", "cam_b"}
    assert said is None or any(said in note for note in found.notes)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            {
                **dict.fromkeys(f"{size}/{row}.jpg" for size in ("small", "large") for row in range(8)),
                "train.csv": table("id,label", [f"{row},{BIRDS[f'{row}.jpg']}" for row in range(8)]),
            },
            "its image '0' is in",
        ),
        (
            {
                **dict.fromkeys(CAMERAS),
                "train.csv": listing("file,label").replace("owl", "Eule \xfc").encode("latin-1"),
            },
            "not in UTF-8",
        ),
        (
            {**dict.fromkeys(CAMERAS), "train.csv": listing("file,label").replace("truck", "a,b,c", 1)},
            "Expected 2 fields in line 6, saw 4",
        ),
        (
            {
                **dict.fromkeys(CAMERAS),
                "train.csv": listing("file,label") + table("", [f"cam_a/x{row}.jpg,owl" for row in range(12)])[1:],
            },
            "do not exist",
        ),
    ],
    ids=["ambiguous", "Latin-1", "a row too long", "most are missing"],
)
def test_a_table_of_the_images_that_cannot_be_read_does_not_leave_folders_as_classes(tmp_path, files, match):
    write(tmp_path, files)
    with pytest.raises(ValueError, match=match) as raised:
        everything(tmp_path)
    assert "Without it the folders would be the classes" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_broken_table_about_something_else_is_named_only(tmp_path):
    write(tmp_path, {**dict.fromkeys(classes()), "notes.csv": "day,who\nMonday,J\xf6rg\n".encode("latin-1")})
    found = everything(tmp_path)
    assert rows_of(found) == {"train": 4}
    assert "not in UTF-8" in found.left_out["notes.csv"]


def test_tables_about_a_few_images_do_not_leave_out_the_others(tmp_path):
    write(
        tmp_path,
        {**dict.fromkeys(classes(size=4)), "notes.csv": table("file,label", ["owl/0.jpg,dim", "fern/1.jpg,ok"])},
    )
    found = everything(tmp_path)
    assert kinds(found) == {"owl", "fern"}
    assert rows_of(found) == {"train": 8}
    assert "Labels are the class folders; notes.csv says what 2 of the images are." in found.notes
    sites = [f"site_{site}/{site}{row}.jpg" for site in "abc" for row in range(10)]
    labels = [f"{path},{('deer', 'fox')[place % 2]}" for place, path in enumerate(sites) if path[-5] in "0123"]
    write(tmp_path / "c", {**dict.fromkeys(sites), "labels.csv": table("file,label", labels)})
    with pytest.raises(ValueError, match=r"folders \('site_a', .* or what labels.csv says \('deer', 'fox'\)"):
        everything(tmp_path / "c")
    assert kinds(everything(tmp_path / "c" / "labels.csv")) == {"deer", "fox"}
    # The labels of all of a folder, beside one that has none yet.
    write(tmp_path / "b", {**dict.fromkeys(classes(names=("done", "todo"), size=4))})
    (tmp_path / "b" / "labels.csv").write_text(
        table("file,label", [f"done/{row}.jpg,{'ab'[row % 2]}" for row in range(4)])
    )
    assert kinds(everything(tmp_path / "b")) == {"a", "b"}


def test_labels_that_are_not_the_folders_are_said(tmp_path):
    rows = [f"{path},{'fern' if path.startswith('owl/0') else path.partition('/')[0]}" for path in classes()]
    write(tmp_path, {**dict.fromkeys(classes()), "labels.csv": table("file,label", rows)})
    assert any("not the class folders of 1 images, such as 0.jpg" in note for note in everything(tmp_path).notes)
    (tmp_path / "labels.csv").rename(tmp_path / "preds.csv")
    assert not everything(tmp_path).notes


def test_a_table_of_no_split_beside_those_of_splits_is_left_out(tmp_path):
    """As in GTSRB, whose Meta.csv lists an icon of every class."""
    files = {
        **dict.fromkeys([*(f"Train/{row}/a{row}.png" for row in range(3)), *(f"Test/b{row}.png" for row in range(3))]),
        **dict.fromkeys(f"Meta/{row}.png" for row in range(3)),
        "Train.csv": table("ClassId,Path", [f"{row},Train/{row}/a{row}.png" for row in range(3)]),
        "Test.csv": table("ClassId,Path", [f"{row},Test/b{row}.png" for row in range(3)]),
        "Meta.csv": table("Path,ClassId", [f"Meta/{row}.png,{row}" for row in range(3)]),
    }
    found = everything(write(tmp_path, files))
    assert rows_of(found) == {"train": 3, "test": 3}
    assert "Meta.csv, which is not named after a split" in found.left_out["Meta/0.png"]


def test_splits_within_classes_or_within_one_of_two_versions(tmp_path):
    inside = [
        f"{name}/{split}/{row}.jpg" for name in ("mole", "newt") for split in ("train", "val") for row in range(2)
    ]
    found = everything(write(tmp_path / "a", inside))
    assert rows_of(found) == {"train": 4, "validation": 4}
    assert kinds(found) == {"mole", "newt"}
    listed = table("file,label", [f"{path},{path.partition('/')[0]}" for path in inside])
    (tmp_path / "a" / "labels.csv").write_text(listed)
    found = everything(tmp_path / "a")
    assert rows_of(found) == {"train": 4, "validation": 4}
    assert kinds(found) == {"mole", "newt"}
    # Kaggle's castings: one version has splits, the other has not.
    files = [*classes("data/data/train/", ("def", "ok")), *classes("data/data/test/", ("def", "ok"))]
    found = everything(write(tmp_path / "b", [*files, *classes("big/big/", ("def", "ok"))]))
    assert rows_of(found) == {"train": 4, "test": 4}
    assert kinds(found) == {"def", "ok"}
    assert "the folder big has no splits" in found.left_out["big/big/ok/0.jpg"]
    # BreaKHis: every class has one folder of the same name.
    found = everything(write(tmp_path / "c", ["benign/SOB/1.jpg", "benign/SOB/2.jpg", "malignant/SOB/3.jpg"]))
    assert kinds(found) == {"benign", "malignant"}
    several = [
        *classes("split1/train/"),
        *classes("split1/test/"),
        *classes("split2/train/"),
        *classes("split2/test/"),
    ]
    with pytest.raises(ValueError, match="'split1', 'split2' each have splits of their own; pass one of them"):
        everything(write(tmp_path / "d", several))


def test_numbers_before_class_names(tmp_path):
    birds = ("002.Laysan_Albatross", "001.Black_footed_Albatross", "010.Auk")
    found = everything(write(tmp_path / "a", [*classes("train/", birds), *classes("test/", birds[:2])]))
    named = ["Black_footed_Albatross", "Laysan_Albatross", "Auk"]
    # In the order of their numbers, so that class_names in that order still name them.
    assert found.splits["train"].features["label"].names == named
    assert found.splits["test"].features["label"].names == named
    assert kinds(found) == set(named)
    assert any("'Auk' for '010.Auk'" in note or "'Black_footed_Albatross'" in note for note in found.notes)
    dogs = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
    found = everything(write(tmp_path / "b", classes(names=dogs)))
    assert found.splits["train"].features["label"].names == ["Chihuahua", "Japanese_spaniel"]
    # Some of the classes alone, in a folder to evaluate on, have the same names.
    found = everything(write(tmp_path / "c", classes(names=("101.Wren", "102.Auk"))))
    assert found.splits["train"].features["label"].names == ["Wren", "Auk"]
    for kept in (
        ("1.owl", "2.fern"),
        ("10.owl", "11.fern"),
        ("2019_owl", "2020_fern"),
        ("7-up", "cola"),
        ("1.owl", "2.owl"),
        ("1.owl", "1.fern"),
        ("101", "102"),
    ):
        found = everything(write(tmp_path / "-".join(kept), classes(names=kept)))
        assert found.splits["train"].features["label"].names == sorted(kept)


def test_classes_that_differ_in_spelling_only_are_refused_everywhere(tmp_path):
    write(tmp_path, ["owl/1.jpg", "owl /2.jpg", "fern/3.jpg"])
    with pytest.raises(ValueError, match=r"the class 'owl ' .* is 'owl'"):
        everything(tmp_path)
    content = (tmp_path / "fern" / "3.jpg").read_bytes()
    for names in (("owl", "owl "), ("Owl", "owl")):
        rows = pd.DataFrame({"image": [content] * 2, "label": names})
        rows.to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=r"column 'label' of rows.parquet has the classes"):
            everything(tmp_path / "rows.parquet")


def test_a_column_of_splits_divides_parquet(tmp_path):
    write(tmp_path, ["owl/1.jpg"])
    content = (tmp_path / "owl" / "1.jpg").read_bytes()
    splits = ["train"] * 5 + ["test"] * 2 + [None]
    rows = pd.DataFrame({"image": [content] * 8, "label": ["owl", "fern"] * 4, "split": splits})
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "data.parquet")
    found = read_data(tmp_path / "data")
    assert rows_of(found) == {"train": 5, "test": 2}
    assert any("Splits are the column 'split'" in note for note in found.notes)
    assert list(found.left_out.values()) == ["it is listed without a split"]
    with pytest.raises(ValueError, match="column 'split' says which split a row is in, and shards that are streamed"):
        read_data(tmp_path / "data", streaming=True)
    # Names of files say it first.
    (tmp_path / "data" / "data.parquet").rename(tmp_path / "data" / "train.parquet")
    assert set(read_data(tmp_path / "data").splits) == {"train", "validation"}


def test_the_only_split_is_for_training_if_its_name_says_so(tmp_path):
    files = classes("asl_alphabet_train/asl_alphabet_train/", size=10)
    found = read_data(write(tmp_path, files), validation_split=0.25)
    assert rows_of(found) == {"train": 14, "validation": 6}


def test_a_share_that_holds_nothing_out_is_said(tmp_path, caplog):
    rows = Dataset.from_dict({"label": [0, 1] * 8})
    for saved, name in ((rows, "one"), (DatasetDict(training=rows, evaluation=rows), "two")):
        saved.save_to_disk(tmp_path / name)
        caplog.clear()
        load_splits(tmp_path / name, validation_split=0.3)
        assert "validation_split=0.3 has no effect" in caplog.text
        caplog.clear()
        splits = load_splits(tmp_path / name)
        assert "validation_split" not in caplog.text
    with pytest.raises(ValueError, match=r"Did you mean 'training'.*--train_split"):
        choose_split(splits, "train", "two")


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("ending", ["tif", "jpg", "png", "webp"])
def test_turned_images_are_upright_in_every_format(tmp_path, processor, orientation, ending):
    drawn = PILImage.new("RGB", (90, 60))
    drawn.paste((255, 255, 255), (0, 0, 45, 30))
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{ending}"
    drawn.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    with PILImage.open(path) as image:
        size = upright_size(image)
        read = ImagePreprocessor(processor.image_processor, decoding="full").read(image, is_own=True)
    with PILImage.open(path) as image:
        expected = as_rgb(image)
    assert size == read.size == read.image.size == expected.size
    assert expected.size == ((60, 90) if orientation in (5, 6, 8) else (90, 60))
    assert np.abs(np.asarray(read.image, dtype=int) - np.asarray(expected, dtype=int)).mean() < 1


def test_integers_of_16_and_32_bits(tmp_path, caplog):
    def levels(values, name):
        PILImage.fromarray(values).save(tmp_path / name)
        with PILImage.open(tmp_path / name) as image:
            return np.asarray(as_rgb(image))[0, 0].tolist()

    assert levels(np.full((4, 4), 50000, np.uint16), "a.png") == [195] * 3
    assert levels(np.full((4, 4), 200, np.int32), "b.tif") == [200] * 3
    assert "nearly black" not in caplog.text
    assert levels(np.full((4, 4), 3000, np.uint16), "c.png") == [11] * 3
    assert "has values up to 3000 only, and is nearly black" in caplog.text
    with pytest.raises(TypeError, match="holds integers from 70000 to 70000"):
        levels(np.full((4, 4), 70000, np.int32), "d.tif")


def test_two_colons_in_the_name_of_a_file(tmp_path):
    write(tmp_path, [*classes("train/", size=2), *classes("test/", size=2)])
    for split in ("train", "test"):
        (tmp_path / split / "owl" / "0.jpg").rename(tmp_path / split / "owl" / "a::0.jpg")
    found = read_data(tmp_path)
    assert not duplicates_across(found.splits, "image")
    assert not are_embedded(found.splits["train"], "image")
    rows = Dataset.from_dict({"image": [str(tmp_path / "train" / "owl" / "a::0.jpg")]}).cast_column("image", Image())
    assert rows[0]["image"].size == (8, 8)


def test_labels_of_minus_one_and_one_are_two_classes(tmp_path):
    labels = table("file,label", [f"{row}.jpg,{1 if row % 2 else -1}" for row in range(6)])
    found = everything(write(tmp_path, {**{f"{row}.jpg": None for row in range(6)}, "labels.csv": labels}))
    rows = found.splits["train"].cast_column("image", Image(decode=False))
    assert [int(image["path"][-5]) % 2 for image in rows["image"]] == rows["label"]
    assert "Labels of -1 and 1 are read as 0 and 1." in found.notes
    # Where 0 is there as well, they are three.
    (tmp_path / "labels.csv").write_text(labels.replace("0.jpg,-1", "0.jpg,0"))
    assert {*everything(tmp_path).splits["train"]["label"]} == {-1, 0, 1}


def test_grades_that_differ_by_a_sign_are_two_classes(tmp_path):
    found = everything(write(tmp_path, ["A-/1.jpg", "A/2.jpg", "B/3.jpg"]))
    assert {*names_of(found).values()} == {"A-", "A", "B"}
    for names in (("fire_(truck)", "fire (truck)"), ("polar - bear", "polar_bear"), ("owl", "owl\u00a0")):
        assert spelling(names[0]) == spelling(names[1])


def test_another_attribute_of_celeba_has_no_advice_about_hair(tmp_path):
    write_celeba(tmp_path)
    assert any("Blond_Hair" in note for note in everything(tmp_path).notes)
    assert not any("Blond_Hair" in note for note in everything(tmp_path, label="Male").notes)
