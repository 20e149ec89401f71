"""Folders and tables as they are downloaded and exported: what is read, and what is refused with the reason."""

import json

import pandas as pd
import pytest

from starft_hf.data.columns import ColumnSettings, resolve_columns
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.data.loading import read_data
from tests.support.folders import classes, names_of, rows_of, table, write


NUMBERS = range(12)
KINDS = [("owl", "fern")[number % 2] for number in NUMBERS]
PAIRS = list(zip(NUMBERS, KINDS, strict=True))
IMAGES = {f"images/{number:03}.jpg": None for number in NUMBERS}
EXPECTED = {f"{number:03}.jpg": kind for number, kind in PAIRS}
NUMBERED = ("red", "blue")


def lines(form, pairs=PAIRS):
    return "".join(form.format(n=n, k=k, f=int(k == "fern")) + "\n" for n, k in pairs)


def flat(folder, size=4):
    return [f"{folder}/{number}.jpg" for number in range(size)]


# Files, and the rows of every split without holding out.
FOLDERS = {
    "folders in folders of the same name": (
        [*classes("seg_train/seg_train/"), *classes("seg_test/seg_test/"), *flat("seg_pred/seg_pred")],
        {"seg_train": 4, "seg_test": 4},
    ),
    "a second copy of all splits": (
        [*classes("x/train/"), *classes("x/test/"), *classes("x/x/train/"), *classes("x/x/test/")],
        {"train": 4, "test": 4},
    ),
    "images of splits": ([*classes("train/images/"), *classes("val/images/")], {"train": 4, "validation": 4}),
    "images beside annotations": ([*classes("images/"), "annotations/1.png"], {"train": 4}),
    "two spellings of train": ([*classes("train/"), *classes("Train/")], {"train": 4, "Train": 4}),
    "test within the classes": ([*classes(), *classes("test/")], {"train": 4, "test": 4}),
    "numbers as classes": (classes("", ("c0", "c1", "c2")), {"train": 6}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, tmp_path):
    files, expected = FOLDERS[name]
    found = read_data(write(tmp_path, files), validation_split=0)
    assert rows_of(found) == expected
    assert len(found.left_out) == len(files) - sum(expected.values())
    names = {name for rows in found.splits.values() for name in rows.features["label"].names}
    assert names in ({"owl", "fern"}, {"c0", "c1", "c2"})


@pytest.mark.parametrize(
    "files",
    [
        [*flat("images"), *flat("annotations/trimaps")],
        [*flat("images"), *flat("masks")],
        [*flat("JPEGImages"), *flat("SegmentationClass"), *flat("SegmentationObject")],
        [*flat("train/images"), *flat("valid/images"), "train/labels/0.txt"],
        {**dict.fromkeys(f"images/train_{n}.jpg" for n in range(4)), "labels/train_1.txt": "train_2.jpg owl\n"},
        [*flat("images_001/images"), *flat("images_002/images")],
        [*flat("HAM_images_part_1"), *flat("HAM_images_part_2")],
        [*flat("train"), *flat("test1")],
        [*flat("train/train"), *flat("test/test")],
    ],
)
def test_folders_of_images_of_all_classes_are_no_classes(files, tmp_path):
    with pytest.raises(ValueError, match="have no classes: they lie in no class folders"):
        read_data(write(tmp_path, files))


@pytest.mark.parametrize("names", [("Owl", "owl", "fern"), ("polar_bear", "polar bear")])
def test_a_class_that_is_spelled_in_two_ways_is_refused(names, tmp_path):
    write(tmp_path, [*classes("train/", names[:1]), *classes("test/", names[1:])])
    with pytest.raises(ValueError, match=f"the class '{names[0]}' .* is '{names[1]}' .*spell it the same"):
        read_data(tmp_path)


TABLES = {
    "an index": table(",file,kind", [f"{n},{n:03}.jpg,{k}" for n, k in PAIRS]),
    "no heading": lines("{n:03}.jpg,{k}"),
    "tabs": table("file\tlabel", [f"{n:03}.jpg\t{k}" for n, k in PAIRS]),
    "a heading with commas": table('"file";"kind (a, b)"', [f"{n:03}.jpg;{k}" for n, k in PAIRS]),
    "its separator": table("sep=;\nfile;kind", [f"{n:03}.jpg;{k}" for n, k in PAIRS]),
    "UTF-16": table("file,label", [f"{n:03}.jpg,{k}" for n, k in PAIRS]).encode("utf-16"),
    "spaces": table("Image Path , Class Name ", [f" images/{n:03}.jpg , {k} " for n, k in PAIRS]),
    "paths of another machine": table("path,label", [f"/content/My Drive/a/images/{n:03}.jpg,{k}" for n, k in PAIRS]),
    "paths of Windows": table("path,label", [rf"C:\Users\me\images\{n:03}.jpg,{k}" for n, k in PAIRS]),
    "paths of a notebook": table("path,label", [f"../data/images/{n:03}.jpg,{k}" for n, k in PAIRS]),
    "numbers that images have": table("row,annotator,image,label", [f"{n + 1},1,{n:03}.jpg,{k}" for n, k in PAIRS]),
    "one column for each class": table(
        "image,owl,fern", [f"{n:03},{k == 'owl':d}.0,{k == 'fern':d}.0" for n, k in PAIRS]
    ),
    "boxes": table("file,class,y", [f"{n:03}.jpg,{k},{n}.5" for n, k in PAIRS for _ in range(2)]),
    "measures": table("file,x,y,choice", [f"{n:03}.jpg,1.5,{n}.25,{k}" for n, k in PAIRS]),
    "empty rows": table("file,label", [*(f"{n:03}.jpg,{k}" for n, k in PAIRS), "", ",", ","]),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name, tmp_path):
    write(tmp_path, {**IMAGES, "all.csv": TABLES[name], "log.csv": "", "log.jsonl": "{"})
    found = read_data(tmp_path, validation_split=0)
    assert names_of(found) == EXPECTED
    assert len(found.splits["train"]) == len(EXPECTED)
    assert found.left_out.keys() == {"log.csv", "log.jsonl"}
    assert all("cannot be read" in why for why in found.left_out.values())


@pytest.mark.parametrize(
    ("heading", "words", "expected"),
    [
        ("data set", ("train", "valid", "test"), {"train": 4, "validation": 4, "test": 4}),
        ("Usage", ("Training", "PublicTest", "PrivateTest"), {"train": 4, "PublicTest": 4, "PrivateTest": 4}),
        ("is_train", ("1", "1", "0"), {"train": 8, "test": 4}),
        ("is_valid", ("False", "True", "False"), {"train": 8, "validation": 4}),
        ("fold", ("0", "1", "2"), {"train": 12}),
        ("trained by", ("train", "train", "train"), {"train": 12}),
    ],
)
def test_columns_of_splits(heading, words, expected, tmp_path):
    rows = [f"{n:03}.jpg,{k},{words[n % 3]}" for n, k in PAIRS]
    found = read_data(write(tmp_path, {**IMAGES, "a.csv": table(f"file,label,{heading}", rows)}), validation_split=0)
    assert rows_of(found) == expected
    assert any(f"Splits are the column {heading!r} of a.csv" in note for note in found.notes) == (len(expected) > 1)


def test_images_that_a_table_lists_repeatedly_or_with_several_labels(tmp_path):
    rows = [f"{n:03}.jpg,{k}" for n, k in PAIRS]
    rows += ["002.jpg,owl", "004.jpg,owl", "000.jpg,fern"]
    rows[1] = "001.jpg,owl|fern"
    found = read_data(write(tmp_path, {**IMAGES, "a.csv": table("file,label", rows)}), validation_split=0)
    assert sorted(names_of(found)) == sorted(EXPECTED)[2:]
    assert len(found.splits["train"]) == 10
    assert found.left_out == dict.fromkeys(("images/000.jpg", "images/001.jpg"), "it is of several classes")
    assert "a.csv lists images repeatedly: 2 of its rows are skipped." in found.notes


def test_tables_that_name_images_of_two_folders(tmp_path):
    """As Stanford Cars, whose training and test images have the same names."""
    files = dict.fromkeys([*flat("cars_train/cars_train"), *flat("cars_test/cars_test")])
    rows = table("image,label", ["0.jpg,owl", "1.jpg,fern", "2.jpg,owl", "3.jpg,fern"])
    write(tmp_path, {**files, "cars.csv": rows})
    with pytest.raises(
        ValueError,
        match=r"its image '0.jpg' is in 'cars_test/.*/' and in 'cars_train/.*/'; w",
    ):
        read_data(tmp_path)
    (tmp_path / "cars.csv").rename(tmp_path / "cars_train.csv")
    found = read_data(tmp_path, validation_split=0)
    assert rows_of(found) == {"train": 4}
    assert set(found.left_out) == set(flat("cars_test/cars_test"))


def test_parquet_with_an_index_and_jsonl_with_values_of_several_types(tmp_path):
    write(tmp_path, IMAGES)
    frame = pd.DataFrame({"path": list(IMAGES), "label": KINDS, "place": ["land", None] * 6})
    frame.set_index("path").to_parquet(tmp_path / "a.parquet")
    found = read_data(tmp_path, validation_split=0)
    assert (names_of(found), found.splits["train"]["place"][:2]) == (EXPECTED, ["land", None])
    (tmp_path / "a.parquet").unlink()
    records = [{"file_name": f"images/{n:03}.jpg", "label": k, "age": (3, "old", None)[n % 3]} for n, k in PAIRS]
    write(tmp_path, {"metadata.jsonl": "\n".join(map(json.dumps, records))})
    found = read_data(tmp_path, validation_split=0)
    assert (names_of(found), found.splits["train"]["age"][:3]) == (EXPECTED, ["3", "old", None])


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_columns_of_lists_and_of_mappings_are_kept(ending, tmp_path):
    write(tmp_path, IMAGES)
    boxes, more = [[1, 2], None] * 6, [{"a": [n]} for n in NUMBERS]
    frame = pd.DataFrame({"box": boxes, "more": more, "path": list(IMAGES), "label": KINDS})
    file = tmp_path / f"rows.{ending}"
    frame.to_parquet(file) if ending == "parquet" else frame.to_json(file, orient="records", lines=True)
    for source in (tmp_path, file):
        found = read_data(source, validation_split=0)
        rows = found.splits["train"]
        assert names_of(found) == EXPECTED
        assert (rows["box"][:2], rows["more"][:2]) == ([[1, 2], None], [{"a": [0]}, {"a": [1]}])


def test_booleans_are_labels_without_names_in_every_table(tmp_path):
    write(tmp_path, IMAGES)
    frame = pd.DataFrame({"path": list(IMAGES), "label": [kind == "owl" for kind in KINDS]})
    for ending, save in (("csv", frame.to_csv), ("parquet", frame.to_parquet), ("json", frame.to_json)):
        save(file := tmp_path / f"rows.{ending}", **({"orient": "records"} if ending == "json" else {"index": False}))
        rows = read_data(file, validation_split=0).splits["train"]
        with pytest.raises(ValueError, match=r"no class names: .*Pass class_names=\[\.\.\.\] for False and True"):
            resolve_columns(rows, ColumnSettings(), what="train")
        labels = resolve_columns(rows, ColumnSettings(class_names=("fern", "owl")), what="train").labels
        assert [labels.names[labels.index(value, "label")] for value in rows["label"]] == KINDS


LISTS = {
    "paths without endings": lambda split: "".join(f"{k}/{n}\n" for n, k in PAIRS if (n < 8) == (split == "train")),
    "paths and numbers": lambda split: "".join(
        f"images/{k}/{n}.jpg {k == 'fern':d}\n" for n, k in PAIRS if (n < 8) == (split == "train")
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_say_which_image_is_in_which_split(name, tmp_path):
    """As those of Food-101, whose test images would be trained on, and DomainNet."""
    files = {f"images/{k}/{n}.jpg": None for n, k in PAIRS}
    files |= {f"meta/{split}.txt": LISTS[name](split) for split in ("train", "test")}
    found = read_data(write(tmp_path, {**files, "meta/classes.txt": "owl\nfern\n"}))
    assert rows_of(found) == {"train": 8, "test": 4}
    assert set(names_of(found, "test").items()) == {(f"{n}.jpg", k) for n, k in PAIRS if n >= 8}


def test_a_table_of_labels_with_lists_of_splits(tmp_path):
    """As the chest X-rays of the NIH."""
    files = {**IMAGES, "Data.csv": table("Image Index,Finding Labels,Age", [f"{n:03}.jpg,{k},{n}" for n, k in PAIRS])}
    files |= {"train_val_list.txt": lines("{n:03}.jpg", PAIRS[:8]), "test_list.txt": lines("{n:03}.jpg", PAIRS[8:])}
    write(tmp_path, files)
    assert rows_of(read_data(tmp_path, None, Wanted(label="Finding Labels"))) == {"train": 8, "test": 4}
    with pytest.raises(
        ValueError, match=r"Data.csv lists images in its column 'Image Index'; if one of its columns F"
    ):
        read_data(tmp_path)
    write(tmp_path, {"test_2.txt": lines("{n:03}.jpg", PAIRS[:2])})
    with pytest.raises(ValueError, match=r"lists the image images/000.jpg for the split .* remove the lists"):
        read_data(tmp_path, None, Wanted(label="Finding Labels"))


def test_class_folders_with_a_flat_validation_set_that_a_list_labels(tmp_path):
    """As Tiny ImageNet."""
    files = dict.fromkeys([*classes("train/owl/", ("images",)), *classes("train/fern/", ("images",))])
    files |= dict.fromkeys([*flat("val/images"), *flat("test/images")])
    files["val/val_annotations.txt"] = "0.jpg\towl\t0\t9\n1.jpg\tfern\t0\t9\n2.jpg\tfern\t1\t9\n3.jpg\towl\t1\t9\n"
    found = read_data(write(tmp_path, files))
    assert rows_of(found) == {"train": 4, "validation": 4}
    assert names_of(found, "validation") == {"0.jpg": "owl", "1.jpg": "fern", "2.jpg": "fern", "3.jpg": "owl"}
    assert set(found.left_out) == set(flat("test/images"))


def coco(pairs):
    """Images and annotations in the form of COCO; of an image whose class is "both", two."""
    ids = {"owl": [3], "fern": [7], "both": [3, 7], "none": []}
    return json.dumps(
        {
            "info": {},
            "images": [{"id": f"x{n}", "file_name": f"{n:03}.jpg", "location": n % 3} for n, _ in pairs],
            "annotations": [{"id": n, "image_id": f"x{n}", "category_id": one} for n, k in pairs for one in ids[k]],
            "categories": [{"id": 3, "name": "owl"}, {"id": 7, "name": "fern"}],
        }
    )


def test_json_of_categories_and_of_records(tmp_path):
    """As iNaturalist, and camera traps with their places."""
    pairs = [*PAIRS[:10], (10, "both"), (11, "none")]
    files = {**{f"images/Aves/{n:03}.jpg": None for n in NUMBERS}, "images/Insecta/x.jpg": None}
    write(tmp_path, {**files, "train2017.json": coco(pairs[:6]), "val2017.json": coco(pairs[6:])})
    found = read_data(tmp_path)
    assert rows_of(found) == {"train": 6, "validation": 4}
    assert {**names_of(found), **names_of(found, "validation")} == {f"{n:03}.jpg": k for n, k in PAIRS[:10]}
    assert found.splits["validation"]["location"][:] == [0, 1, 2, 0]
    assert found.left_out == {
        "images/Aves/010.jpg": "it is of several classes",
        "images/Aves/011.jpg": "it has no label",
        "images/Insecta/x.jpg": "no table lists it",
    }
    records = [{"path": f"images/Aves/{n:03}.jpg", "label": k} for n, k in PAIRS]
    write(tmp_path, {"all.json": json.dumps(records)})
    assert names_of(read_data(tmp_path / "all.json", validation_split=0)) == EXPECTED


def test_cub(tmp_path):
    files = {f"CUB/images/00{1 + n % 2}.A_{k}/{n}.jpg": None for n, k in PAIRS}
    files["CUB/images.txt"] = lines("{n} 00{f}.A_{k}/{n}.jpg").replace(" 001.", " 002.").replace(" 000.", " 001.")
    files["CUB/image_class_labels.txt"] = "".join(f"{n} {1 + n % 2}\n" for n in NUMBERS)
    files["CUB/train_test_split.txt"] = "".join(f"{n} {int(n < 8)}\n" for n in NUMBERS)
    files["CUB/classes.txt"] = "1 001.A_owl\n2 002.A_fern\n"
    found = read_data(write(tmp_path, files))
    assert rows_of(found) == {"train": 8, "test": 4}
    assert found.splits["train"].features["label"].names == ["A owl", "A fern"]
    assert set(names_of(found, "test").items()) == {(f"{n}.jpg", f"A {k}") for n, k in PAIRS if n >= 8}
    (tmp_path / "CUB" / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"are those of CUB, but CUB/classes.txt is missing"):
        read_data(tmp_path)


REFUSED = {
    "other files": (
        "all.csv",
        "file,label\nb1.png,owl\nb2.png,fern\n",
        "of the 2 images that its column 'file' names, 2",
    ),
    "Latin-1": ("all.csv", "file,label\n001.jpg,\xe9\n".encode("latin-1"), "not in UTF-8.*iconv -f WINDOWS-1252"),
    "longer rows": ("all.csv", "file,label\n001.jpg,owl,big\n", "rows with more values than its heading; quote"),
    "folds as splits": (
        "all.csv",
        "file,label,split\n" + lines("{n:03}.jpg,{k},{n}"),
        "write train, validation and test",
    ),
    "columns of no name": (
        "all.csv",
        "file,a,b\n" + lines("{n:03}.jpg,{k},x"),
        "one of its columns a, b has the labels",
    ),
    "metadata without paths": (
        "metadata.csv",
        "patient,tumor\nx,1\ny,0\n",
        "patient, tumor names images; call that of",
    ),
    "lists as lines": ("metadata.jsonl", '["001.jpg", "owl"]\n', "is not a JSON object"),
    "labels of MATLAB": ("labels.mat", "-", "Beside them lies 'labels.mat'.* list the images in a metadata.csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name, tmp_path):
    file, content, why = REFUSED[name]
    with pytest.raises(ValueError, match=why):
        read_data(write(tmp_path, {**IMAGES, file: content}))


def test_files_that_need_a_package_or_are_no_data(tmp_path):
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        read_data(write(tmp_path / "phone", ["cat/1.HEIC", "dog/2.HEIC"]))
    write(tmp_path, {"a.zip": "-"})
    with pytest.raises(ValueError, match="unpack an archive"):
        read_data(tmp_path / "a.zip")
