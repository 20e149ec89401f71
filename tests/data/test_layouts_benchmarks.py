"""Datasets as they are distributed, read from made-up copies."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from starft_hf.data import imagenet
from starft_hf.data.layouts import FileTree
from starft_hf.data.layouts.resolve import LAYOUTS
from starft_hf.data.loading import read_data
from tests.support import layouts
from tests.support.layouts import (
    GOLDFISH,
    OWL,
    TENCH,
    coco_captions,
    write_celeba,
    write_coco,
    write_fmow,
    write_imagenet,
    write_images,
    write_iwildcam,
    write_json,
    write_roboflow,
    write_table,
    write_waterbirds,
)


BIRDS = {"00": "landbird land", "01": "landbird water", "10": "waterbird land", "11": "waterbird water"}
LISTED = "metadata.csv lists it, but there is no such image"


def read(root):
    """The layout of a folder, which only one of the readers may recognize."""
    tree = FileTree(Path(root))
    (found,) = [layout for reader in LAYOUTS if (layout := reader(tree)) is not None]
    for split, rows in found.splits.items():
        assert all(map(Path.is_file, map(Path, rows["image"])))
        assert rows.index.tolist() == list(range(len(rows)))
        assert found.sources[split]
    return found


def counts(found, *columns):
    """How often every combination of values occurs, by split."""
    return {
        split: Counter(" ".join(map(str, row)) for row in rows[list(columns)].itertuples(index=False))
        for split, rows in found.splits.items()
    }


@pytest.mark.parametrize("above", ["", "data/"])
@pytest.mark.parametrize("ending", [".jpg", ".JPG"])
def test_waterbirds(tmp_path, above, ending):
    write_waterbirds(tmp_path / above, ending=ending)
    found = read(tmp_path)
    assert (found.class_names, found.group_columns) == (("landbird", "waterbird"), ("label", "place"))
    assert list(found.splits) == ["train", "validation", "test"]
    expected = {
        split: Counter(map(BIRDS.get, pairs))
        for split, pairs in zip(found.splits, layouts.WATERBIRDS.values(), strict=True)
    }
    assert counts(found, "label", "place") == expected
    assert not found.left_out


def test_listed_images_that_are_missing(tmp_path):
    write_waterbirds(tmp_path)
    (tmp_path / "001.Bird" / "Bird_1.jpg").unlink()
    # Written by a program that cares less for the case of names.
    (tmp_path / "002.Bird" / "Bird_2.jpg").rename(tmp_path / "002.Bird" / "BIRD_2.JPG")
    found = read(tmp_path)
    assert found.left_out == {"001.Bird/Bird_1.jpg": LISTED}
    assert [len(rows) for rows in found.splits.values()] == [5, 4, 5]
    for folder in ("000.Bird", "001.Bird"):
        shutil.rmtree(tmp_path / folder)
    with pytest.raises(
        ValueError, match=r"metadata.csv lists 15 images, and 10 of them are missing, such as '000.Bird/"
    ):
        read(tmp_path)


def test_tables_that_are_not_those_of_waterbirds(tmp_path):
    write_waterbirds(tmp_path, rows=[(0, 0, 0), (0, 2, 1)])
    assert [reader(FileTree(tmp_path)) for reader in LAYOUTS] == [None] * len(LAYOUTS)
    write_waterbirds(tmp_path, rows=[(0, 0, 0), (0, "", 1)])
    with pytest.raises(ValueError, match=r"column 'y' of metadata.csv holds an empty value; expected one of 0, 1"):
        read(tmp_path)
    write_waterbirds(tmp_path, rows=[(0, 0, 0), ("", 1, 1)])
    with pytest.raises(ValueError, match=r"'split' of metadata.csv holds an empty value; expected the split of every"):
        read(tmp_path)
    write_table(tmp_path / "metadata.csv", ("img_filename", "y", "split", "place"))
    with pytest.raises(ValueError, match=r"metadata.csv lists no images"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("csv", {}),
        ("csv", {"images": "img_align_celeba/img_align_celeba", "zeros": True}),
        ("txt", {"images": "Img/img_align_celeba"}),
        ("txt", {"images": "Img/img_align_celeba_png", "ending": ".PNG"}),
    ],
)
def test_celeba(tmp_path, form, settings):
    write_celeba(tmp_path / "celeba", form, **settings)
    # The faces in the wild, of the same names.
    write_images(tmp_path / "celeba" / "Img" / "img_celeba", *(f"{number:06}.jpg" for number in range(1, 8)))
    found = read(tmp_path)
    assert (found.class_names, found.group_columns) == (("dark", "blond"), ("label", "sex"))
    assert counts(found, "label", "sex", "Smiling") == {
        "train": Counter(["dark male 1", "blond female 0", "dark female 1"]),
        "validation": Counter(["blond male 0", "dark male 1"]),
        "test": Counter(["blond female 1", "dark female 0"]),
    }
    folders = {Path(path).parent for rows in found.splits.values() for path in rows["image"]}
    assert folders == {tmp_path / "celeba" / settings.get("images", "img_align_celeba")}
    assert not found.left_out


def test_celeba_in_part(tmp_path):
    write_celeba(tmp_path)
    write_table(tmp_path / "list_eval_partition.csv", ("image_id", "partition"), ("000001.jpg", 0), ("000006.jpg", 2))
    found = read(tmp_path)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 1, "test": 1}
    assert found.left_out["img_align_celeba/000002.jpg"] == "list_eval_partition.csv does not list it"
    (tmp_path / "list_eval_partition.csv").unlink()
    with pytest.raises(ValueError, match=r"has list_attr_celeba.csv, but neither list_eval_partition.csv nor "):
        read(tmp_path)
    write_celeba(tmp_path)
    write_table(tmp_path / "list_attr_celeba.csv", ("image_id", "Blond_Hair", "Male"), ("000001.jpg", 2, 1))
    with pytest.raises(
        ValueError, match=r"column 'Blond_Hair' of list_attr_celeba.csv holds 2; expected one of -1, 0, 1"
    ):
        read(tmp_path)
    write_table(tmp_path / "list_attr_celeba.csv", ("image_id", "Male"), ("000001.jpg", 1))
    with pytest.raises(ValueError, match=r"list_attr_celeba.csv has no attribute 'Blond_Hair'"):
        read(tmp_path)


@pytest.mark.parametrize("above", ["", "iwildcam_v2.0/"])
def test_iwildcam(tmp_path, above):
    write_iwildcam(tmp_path / above)
    found = read(tmp_path)
    assert found.class_names == ("empty", "owl", "fern")
    assert counts(found, "label", "location_remapped") == {
        "train": Counter(["empty 0", "fern 1", "owl 2"]),
        "validation": Counter(["empty 1"]),
        "test": Counter(["owl 2", "empty 3"]),
        "id_val": Counter(["owl 3"]),
        "id_test": Counter(["fern 0"]),
    }
    (tmp_path / above / "categories.csv").unlink()
    with pytest.raises(ValueError, match=r"categories.csv, with the names of its classes, is missing"):
        read(tmp_path)


def test_fmow(tmp_path):
    write_fmow(tmp_path / "fmow_v1.1")
    found = read(tmp_path)
    assert (found.class_names, found.group_columns) == (("airport", "dam", "zoo"), ("region",))
    # Namibia is "NA" for short.
    assert counts(found, "label", "region", "year") == {
        "train": Counter(["zoo Europe 2005", "airport Africa 2012"]),
        "validation": Counter(["dam Asia 2014"]),
        "test": Counter(["airport Asia 2016", "zoo Other 2017"]),
        "id_val": Counter(["zoo Other 2012"]),
        "id_test": Counter(["dam Africa 2010"]),
    }
    assert {Path(path).name: why for path, why in found.left_out.items()} == {
        "rgb_img_2.png": "WILDS does not use images of its split and year",
        "rgb_img_4.png": "WILDS does not use sequestered images",
        "rgb_img_9.png": "WILDS does not use images of its split and year",
    }
    (tmp_path / "fmow_v1.1" / "country_code_mapping.csv").unlink()
    with pytest.raises(ValueError, match=r"country_code_mapping.csv, with the regions of countries, is missing"):
        read(tmp_path)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(
    ("inner", "start"),
    [
        ("ILSVRC/Data/", ""),
        ("ILSVRC/Data/", "ILSVRC"),
        ("ILSVRC/Data/", "ILSVRC/Data/CLS-LOC"),
        ("", ""),
        ("a/b/", ""),
    ],
)
def test_imagenet(tmp_path, monkeypatch, flat, inner, start):
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    write_imagenet(tmp_path / "kaggle", inner=inner, flat=flat)
    found = read(tmp_path / "kaggle" / start)
    assert found.class_names == ("tench", "goldfish", "great grey owl")
    assert counts(found, "label", "wordnet_id") == {
        "train": Counter([f"tench {TENCH}"] * 3 + [f"great grey owl {OWL}"]),
        "validation": Counter([f"tench {TENCH}", f"goldfish {GOLDFISH}", f"great grey owl {OWL}"]),
    }
    (unlabeled,) = found.left_out.items()
    assert unlabeled[0].endswith("test/ILSVRC2012_test_00000001.JPEG")
    assert unlabeled[1] == "it has no label"


def test_imagenet_without_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    write_imagenet(tmp_path, mapping=False)
    (tmp_path / "LOC_val_solution.csv").unlink()
    found = read(tmp_path)
    assert list(found.splits) == ["train"]
    assert found.class_names == (TENCH, OWL)
    assert list(found.left_out.values()).count("there is no LOC_val_solution.csv, which has its label") == 3
    assert any("there is no LOC_synset_mapping.txt" in note for note in found.notes_on_labels)
    shutil.rmtree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "train")
    with pytest.raises(ValueError, match=r"no image in .* has a label: of .*, there is no LOC_val_solution.csv"):
        read(tmp_path)
    write_table(
        tmp_path / "LOC_val_solution.csv", ("ImageId", "PredictionString"), ("ILSVRC2012_val_00000001", "tench")
    )
    with pytest.raises(ValueError, match=r"'PredictionString' of .* do not begin with a WordNet id"):
        read(tmp_path)


def test_roboflow(tmp_path):
    write_roboflow(tmp_path / "export", {"train": ["10", "01", "11", "00", "10"], "valid": ["01"], "test": ["10"]})
    found = read(tmp_path)
    assert found.class_names == ("owl", "fern")
    assert counts(found, "label") == {
        "train": Counter(owl=2, fern=1),
        "validation": Counter(fern=1),
        "test": Counter(owl=1),
    }
    assert found.left_out == {
        "export/train/2_png.rf.abc.jpg": "it is of several classes",
        "export/train/3_png.rf.abc.jpg": "it is of none of the classes",
    }


@pytest.mark.parametrize(
    ("tables", "settings", "message"),
    [
        (
            {"train": ["11", "00"]},
            {},
            "no image of train/_classes.csv has exactly one class: 1 have several",
        ),
        ({"train": ["10", "02"]}, {}, "column 'fern' of train/_classes.csv holds 2; expected one of 0, 1"),
        (
            {"train": ["1"]},
            {"classes": ["owl"]},
            "train/_classes.csv has the columns filename, owl; expected filename",
        ),
    ],
)
def test_tables_of_roboflow_that_cannot_be_used(tmp_path, tables, settings, message):
    write_roboflow(tmp_path, tables, **settings)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_roboflow_with_other_classes_in_a_split(tmp_path):
    write_roboflow(tmp_path, {"train": ["10"]})
    write_roboflow(tmp_path, {"valid": ["10"]}, classes=["fern", "truck"])
    with pytest.raises(
        ValueError, match=r"valid/_classes.csv has the classes fern, truck, and train/_classes.csv has owl"
    ):
        read(tmp_path)
    # Those of another order are the same.
    write_roboflow(tmp_path, {"valid": ["10"]}, classes=["fern", "owl"])
    assert counts(read(tmp_path), "label")["validation"] == Counter(fern=1)


@pytest.mark.parametrize("images", ["", "images/"])
@pytest.mark.parametrize("ending", [".jpg", ".JPG"])
def test_captions_of_coco(tmp_path, images, ending):
    write_coco(tmp_path, {"train": [["an owl", " a bird "], ["a truck"], [" "]], "val": [["a fern"]]}, images, ending)
    # Boxes lie beside captions; their file need not even be valid.
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
    found = read(tmp_path)
    assert {split: rows["caption"].tolist() for split, rows in found.splits.items()} == {
        "train": [["an owl", "a bird"], ["a truck"]],
        "validation": [["a fern"]],
    }
    assert Path(found.splits["validation"]["image"][0]) == tmp_path / f"{images}val2017" / f"{0:012}{ending}"
    why = "it has no caption in annotations/captions_train2017.json"
    assert found.left_out == {f"{images}train2017/{2:012}{ending}": why}
    # Many download the images of one split alone.
    shutil.rmtree(tmp_path / images / "train2017")
    found = read(tmp_path)
    assert list(found.splits) == ["validation"]
    assert found.left_out == {"annotations/captions_train2017.json": "none of its images are here"}
    shutil.rmtree(tmp_path / images / "val2017")
    with pytest.raises(
        ValueError, match=r"captions_train2017.json, annotations/captions_val2017.json, and none of their"
    ):
        read(tmp_path)


def test_captions_in_a_file_of_any_name_beside_images(tmp_path):
    write_json(tmp_path / "photos.json", coco_captions([["an owl"], ["a truck"]]))
    write_images(tmp_path / "photos", f"{0:012}.jpg", f"{1:012}.jpg")
    (rows,) = read(tmp_path).splits.values()
    assert rows["caption"].tolist() == [["an owl"], ["a truck"]]
    boxes = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "bbox": []}],
        "categories": [],
    }
    write_json(tmp_path / "photos.json", boxes)
    assert [reader(FileTree(tmp_path)) for reader in LAYOUTS] == [None] * len(LAYOUTS)
    write_json(
        tmp_path / "photos.json", {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "an owl"}]}
    )
    with pytest.raises(ValueError, match=r"photos.json has an image without file_name and id"):
        read(tmp_path)


def test_captions_of_coco_of_two_years(tmp_path):
    write_coco(tmp_path, {"train": [["an owl"]]})
    (tmp_path / "train2017").rename(tmp_path / "images")
    shutil.copy(
        tmp_path / "annotations" / "captions_train2017.json", tmp_path / "annotations" / "captions_train2014.json"
    )
    with pytest.raises(ValueError, match=r"captions_train2014.json and .*2017.json are both of the split 'train'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("write", "names", "groups"),
    [
        (write_waterbirds, ["landbird", "waterbird"], ("label", "place")),
        (write_celeba, ["dark", "blond"], ("label", "sex")),
        (write_iwildcam, ["empty", "owl", "fern"], ()),
        (write_fmow, ["airport", "dam", "zoo"], ("region",)),
        (write_imagenet, ["tench", "goldfish", "great grey owl"], ()),
        (lambda root: write_roboflow(root, {"train": ["01"], "valid": ["10"], "test": ["10"]}), ["owl", "fern"], ()),
        (lambda root: write_coco(root, {"train": [["an owl", "a bird"]], "val": [["a fern"]]}), None, ()),
    ],
)
def test_each_is_loaded_by_its_folder_alone(tmp_path, write, names, groups):
    write(tmp_path)
    found = read_data(tmp_path)
    assert found.group_columns == groups
    # Every image is in a split, or there is a reason.
    assert sum(map(len, found.splits.values())) + len(found.left_out) == len(FileTree(tmp_path).images)
    for rows in found.splits.values():
        assert rows[0]["image"].size == (24, 24)
        if names is None:
            assert all(isinstance(caption, str) for caption in rows[0]["caption"])
        else:
            assert rows.features["label"].names == names
