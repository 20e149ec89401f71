"""`starft inspect`, and what other commands say of their data."""

import json

from tests.support.layouts import write_coco, write_waterbirds
from tests.support.tiny import TINY_CLIP, write_folder


FAST = ["--per_device_train_batch_size", "8", "--max_steps", "1", "--use_cpu", "--save_strategy", "no"]


def test_the_json_that_other_programs_read(run, tmp_path):
    write_folder(tmp_path / "photos")
    write_folder(tmp_path / "photos", seed=1, split="val")
    (tmp_path / "photos" / "train" / ".DS_Store").touch()
    found = json.loads(run("inspect", "photos", "--group_column", "place", "--json"))
    assert found["splits"]["train"] == {
        "rows": 16,
        "classes": ["fern", "owl", "truck", "violin"],
        "groups": found["splits"]["train"]["groups"],
        "sources": ["train/metadata.csv"],
    }
    assert list(found["splits"]) == ["train", "validation"]
    assert sum(found["splits"]["validation"]["groups"].values()) == 16
    assert set(found["splits"]["validation"]["groups"]) == {"left", "right"}
    assert found["left_out"] == {"count": 1, "examples": ["train/.DS_Store: it is hidden"]}
    assert found["columns"] == {"image": "image", "label": "label", "group": "place", "caption": None}
    assert found["captions"][:2] == ["a photo of a fern.", "a photo of a owl."]
    assert len(found["captions"]) == 6


def test_lines_for_people(run, tmp_path):
    write_folder(tmp_path / "photos")
    shown = run("inspect", "photos", "--validation_split", "0.25", "--spuriosity", "texture")
    assert "train       12 rows, 4 classes (fern 3, owl 3, truck 3, violin 3), from train/metadata.csv" in shown
    assert "4 of its 16 images, chosen at random and stratified by class, are held out" in shown
    assert "--validation_split" in shown
    assert "a photo of a fern." in shown


def test_data_that_training_refuses_is_refused_in_one_line(run, tmp_path):
    (tmp_path / "flat" / "train").mkdir(parents=True)
    write_folder(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "owl" / "0.png").rename(tmp_path / "flat" / "train" / "0.png")
    error = run("inspect", "flat", code=2)
    assert "starft inspect: error: the 1 images in 'train' have no classes" in error
    assert error.count("\n") == 1
    assert "photos has no column 'plcae'" in run("inspect", "photos", "--group_column", "plcae", code=2)
    assert "has no column 'species'" in run("inspect", "photos", "--label_column", "species", code=2)
    assert "--validation_split is 1.5; it must be at least 0" in run(
        "inspect", "photos", "--validation_split", "1.5", code=2
    )
    assert "there is no folder './nowhere'" in run("inspect", "./nowhere", code=2)


def test_training_says_what_it_reads_and_evaluates_on_what_it_holds_out(run, tmp_path, capsys):
    write_folder(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "metadata.csv").unlink()
    found = json.loads(
        run("train", "--model", TINY_CLIP, "--dataset", "photos/train", *FAST, "--output_dir", "a", "--json")
    )
    assert set(found["results"]) == {"validation"}


def test_discovery_and_evaluation_read_all_of_a_folder_without_splits(run, tmp_path):
    write_folder(tmp_path / "photos")
    found = json.loads(run("evaluate", TINY_CLIP, "photos/train", "--json"))
    assert sum(found["group_sizes"].values()) == 16
    assert json.loads(run("discover", TINY_CLIP, "photos", "--json"))["images"] == 16


def test_a_benchmark_is_inspected_as_it_is_trained_on(run, tmp_path):
    write_waterbirds(tmp_path / "birds")
    of_benchmark = json.loads(run("inspect", "--benchmark", "waterbirds", "--data_dir", "birds", "--json"))
    of_folder = json.loads(run("inspect", "birds", "--json"))
    assert of_folder["columns"] == {"image": "image", "label": "label", "group": ["label", "place"], "caption": None}
    for name, split in of_folder["splits"].items():
        assert {**of_benchmark["splits"][name], "sources": split["sources"]} == split
    assert "pass a dataset or --benchmark" in run("inspect", code=2)


def test_captions_without_labels_are_taken_as_captions(run, tmp_path):
    write_coco(tmp_path / "coco", {"train": [["an owl", "a bird"], ["a truck"]], "val": [["a fern"]]})
    found = json.loads(run("inspect", "coco", "--json"))
    assert found["columns"] == {"image": "image", "label": None, "group": None, "caption": "caption"}
    assert found["captions"][:2] == ["an owl", "a truck"]
    shown = run("train", "--model", TINY_CLIP, "--dataset", "coco", *FAST, "--regularizer", "kl", "--output_dir", "a")
    assert "images and captions are retrieved" in " ".join(shown.split())
