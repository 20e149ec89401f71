"""Benchmarks from folders, on made-up copies of what is distributed."""

import json
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from starft_hf.data.columns import ColumnSettings, resolve_columns
from starft_hf.evaluation.catalog import benchmark_names, imagenet_class_names, load_benchmark
from starft_hf.evaluation.catalog import entry as entry_module
from tests.support.benchmarks import IMAGENET_A, needs_open_clip, random_images
from tests.support.families import family
from tests.support.layouts import (
    write_celeba,
    write_fmow,
    write_imagenet,
    write_images,
    write_iwildcam,
    write_waterbirds,
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(entry_module, "load_dataset", lambda *args, **kwargs: pytest.fail("downloads"))


def write_pacs(root):
    files = ("art_painting/dog/a.jpg", "sketch/dog/1.PNG", "photo/person/b.jpg", "photo/house/c.jpg")
    write_images(root / "pacs" / "kfold", *files)


def write_class_folders(root, *names):
    write_images(root, *(f"copy/{name}/{number}.JPEG" for number, name in enumerate(names)))


def groups_of(rows, entry):
    """How many rows are in every group, as evaluation and training name it."""
    columns = resolve_columns(rows, ColumnSettings(group_column=entry.group_columns or None), what="rows")
    return dict(Counter(columns.group_of({name: row[name] for name in columns.used}) for row in rows))


def groups(text):
    return {name: int(size) for name, size in (part.rsplit(" ", 1) for part in text.split(", "))}


LAND, WATER = "landbird x land {}, landbird x water {}, ", "waterbird x land {}, waterbird x water {}"


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        (
            "waterbirds",
            write_waterbirds,
            {
                "train": (LAND + WATER).format(2, 1, 1, 2),
                "validation": (LAND + WATER).format(1, 1, 1, 1),
                "test": (LAND + WATER).format(1, 1, 1, 2),
            },
        ),
        (
            "celeba",
            write_celeba,
            {
                "train": "dark x male 1, blond x female 1, dark x female 1",
                "validation": "blond x male 1, dark x male 1",
                "test": "blond x female 1, dark x female 1",
            },
        ),
        (
            "iwildcam",
            write_iwildcam,
            {
                "train": "empty 1, fern 1, owl 1",
                "validation": "empty 1",
                "test": "owl 1, empty 1",
                "id_val": "owl 1",
                "id_test": "fern 1",
            },
        ),
        (
            "fmow",
            write_fmow,
            {
                "train": "Europe 1, Africa 1",
                "validation": "Asia 1",
                "test": "Asia 1, Other 1",
                "id_val": "Other 1",
                "id_test": "Africa 1",
            },
        ),
        pytest.param(
            "imagenet",
            write_imagenet,
            {"train": "tench 3, great grey owl 1", "validation": "goldfish 1, tench 1, great grey owl 1"},
            marks=needs_open_clip,
        ),
        ("pacs", write_pacs, {"all": "art_painting 1, sketch 1, photo 2"}),
    ],
)
def test_every_split_has_the_rows_classes_and_groups_of_the_benchmark(tmp_path, name, write, expected):
    write(tmp_path / "download")
    entry = load_benchmark(name, root=tmp_path)
    assert set(entry.splits) == set(expected)
    for split, found in expected.items():
        with pytest.warns(UserWarning, match=f"whose {split} split has") as warned:
            rows = entry.load(split=split)
        assert len(warned) == 1
        assert rows[0]["image"].size == (24, 24)
        assert rows.features["label"].names == list(entry.class_space().names)
        assert groups_of(rows, entry) == groups(found)
    with pytest.warns(UserWarning, match="has"):
        assert entry.load()["label"][:] == entry.load(split=entry.evaluation_split)["label"][:]
    with pytest.raises(ValueError, match=f"unknown split of '{name}' in '.*' 'dev'"):
        entry.load(split="dev")


@pytest.mark.filterwarnings("ignore:.*cannot be compared")
def test_folder_and_hub_give_the_same_columns(tmp_path):
    """So that a model trained on one is evaluated on the other."""
    write_waterbirds(tmp_path)
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=Value("int64"))
    rows = {"image": random_images(2), "label": [1, 0], "place": [1, 0]}
    downloaded = load_benchmark("waterbirds").prepare(Dataset.from_dict(rows, features))
    read = load_benchmark("waterbirds", root=tmp_path)
    assert read.load(split="train").features == downloaded.features
    assert read.load().features == downloaded.features


def test_splits_of_the_hub(monkeypatch, tmp_path):
    features = Features(image=Image(), label=ClassLabel(names=["landbird", "waterbird"]), place=Value("int64"))
    rows = Dataset.from_dict({"image": random_images(2), "label": [1, 0], "place": [1, 0]}, features)
    monkeypatch.setattr(entry_module, "load_dataset", lambda hub_id, config, split, **_: calls.append(split) or rows)
    entry, calls = load_benchmark("waterbirds"), []
    assert entry.splits == ("train", "validation", "test")
    for split, size in (("train", 4795), ("validation", 1199), (None, 5794)):
        with pytest.warns(UserWarning, match=f"the Hub has 2 rows for 'waterbirds', whose .* split has {size}"):
            entry.load(split=split)
    assert calls == ["train", "validation", "test"]
    assert sum(entry.training_sizes.values()) == entry.split_rows["train"]
    with pytest.raises(ValueError, match=r"unknown split of 'fmow' on the Hub 'train'. Known: 'test'"):
        load_benchmark("fmow").load(split="train")


@needs_open_clip
@pytest.mark.filterwarnings("ignore:.*cannot be compared")
@pytest.mark.parametrize(
    ("name", "folders", "labels"),
    [
        ("imagenet-v2", ["0", "999", "10"], [0, 999, 10]),
        ("imagenet-sketch", ["n01440764", "n15075141"], [0, 999]),
        ("imagenet-r", ["n01443537", "n01440764"], None),
        # The first and the second of the classes of ImageNet-A.
        ("imagenet-a", ["n01498041", "n01531178"], [0, 1]),
    ],
)
def test_folders_of_the_classes_of_imagenet(tmp_path, name, folders, labels):
    write_class_folders(tmp_path, *folders)
    entry = load_benchmark(name, root=tmp_path)
    if labels is None:
        with pytest.raises(ValueError, match=r"'imagenet-r' cannot be .*: a folder .* unknown class 'n01440764'"):
            entry.load()
        return
    rows = entry.load()
    assert sorted(rows["label"][:]) == sorted(labels)
    if name == "imagenet-a":
        assert [rows.features["label"].names[label] for label in labels] == [
            imagenet_class_names()[index] for index in IMAGENET_A[:2]
        ]
    write_images(tmp_path / "other" / folders[0], "1.JPEG")
    with pytest.raises(ValueError, match="folders of classes in copy and in other; pass one"):
        load_benchmark(name, root=tmp_path).load()


@needs_open_clip
@pytest.mark.filterwarnings("ignore:.*cannot be compared")
def test_objectnet(tmp_path):
    contents = {
        "folder_to_objectnet_label.json": {"tie": "Tie", "air_pump": "Air pump", "alarm": "Alarm clock"},
        "objectnet_to_imagenet_1k.json": {"Alarm clock": "clock a; clock, b", "Tie": "tie"},
        "pytorch_to_imagenet_2012_id.json": {"409": 2, "530": 0, "906": 1},
    }
    mappings = tmp_path / "objectnet-1.0" / "mappings"
    mappings.mkdir(parents=True)
    for file, content in contents.items():
        (mappings / file).write_text(json.dumps(content))
    (mappings / "imagenet_to_label_2012_v2").write_text("clock, b\ntie\nclock a\n")
    write_images(tmp_path / "objectnet-1.0" / "images", "tie/a.png", "air_pump/b.png", "alarm/c.png")
    rows = load_benchmark("objectnet", root=tmp_path).load()
    assert rows.features["label"].names == ["alarm clock", "tie"]
    assert sorted(rows["label"][:]) == [0, 1]
    # Without its red frame.
    assert rows[0]["image"].size == (20, 20)


@pytest.mark.filterwarnings("ignore:.*cannot be compared")
def test_iwildcam_by_other_names(tmp_path):
    write_iwildcam(tmp_path)
    entry = load_benchmark("iwildcam", root=tmp_path, classes=["nothing", "an owl", "a fern"])
    rows = entry.load(split="train")
    assert rows.features["label"].names == ["nothing", "an owl", "a fern"]
    assert rows["label"][:] == [0, 2, 1]
    (tmp_path / "categories.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no categories.csv"):
        load_benchmark("iwildcam", root=tmp_path)


def test_folders_that_hold_something_else(tmp_path):
    write_images(tmp_path, "owl/1.jpg")
    with pytest.raises(ValueError, match=r"'waterbirds' cannot be read from '.*': expected metadata.csv with the col"):
        load_benchmark("waterbirds", root=tmp_path).load()
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'; pass one with list_attr_celeba"):
        load_benchmark("celeba", root=tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"'cifar10.02' is distributed as arrays .* Those that can be .* are waterbirds"
    ):
        load_benchmark("cifar10.02", root=tmp_path)
    assert {*entry_module.FOLDERS, "cifar10.02"} == {*benchmark_names()}


@pytest.mark.filterwarnings("ignore:.*cannot be compared")
def test_evaluation_from_a_folder(tmp_path):
    write_waterbirds(tmp_path)
    clip, processor = family("clip", max_length=96)
    entry = load_benchmark("waterbirds", root=tmp_path)
    result = entry.evaluate(clip, processor, progress=False)
    assert result.group_sizes == groups((LAND + WATER).format(1, 1, 1, 2))
    shares = {group: size / 4795 for group, size in entry.training_sizes.items()}
    adjusted = sum(share * result.group_accuracies[group] for group, share in shares.items())
    assert result.group_adjusted_accuracy == pytest.approx(adjusted)
