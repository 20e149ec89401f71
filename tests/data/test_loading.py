"""Datasets as users have them: in folders of several kinds, on the Hub, iterable."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, IterableDatasetDict, load_dataset

from starft_hf import StarFTTrainer, evaluate_zero_shot
from starft_hf.data import loading
from starft_hf.data.all_images import read_all_images
from starft_hf.data.columns import ColumnSettings, resolve_columns
from starft_hf.data.layouts.table_columns import Wanted
from starft_hf.data.loading import load_splits, read_data
from tests.support.tiny import CLASS_NAMES, make_dataset, write_folder, write_shards


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of images, with or without their places."""

    def make(places=True, class_names=CLASS_NAMES):
        for split, seed in (("train", 0), ("test", 1)):
            write_folder(tmp_path / "photos", class_names, seed=seed, split=split)
            if not places:
                (tmp_path / "photos" / split / "metadata.csv").unlink()
        return tmp_path / "photos"

    return make


def check_trains(clip, processor, config, train, test=None, **settings):
    trainer = StarFTTrainer(clip, config(**settings), train, test, processing_class=processor)
    trainer.train()
    if test is not None:
        assert 0 <= trainer.evaluate()["eval_worst_group_accuracy"] <= 1
    return trainer


@pytest.mark.parametrize("places", [True, False], ids=["metadata.csv", "folders alone"])
def test_a_folder_of_images(places, folder, clip, processor, config):
    splits = load_splits(folder(places))
    assert splits["train"].features["label"] == ClassLabel(names=sorted(CLASS_NAMES))
    assert set(splits["train"].column_names) == {"image", "label", "place"} - (set() if places else {"place"})
    names = splits["train"].features["label"].names
    for row, path in zip(splits["train"], splits["train"].data["image"].to_pylist(), strict=True):
        assert f"/{names[row['label']]}/" in path["path"].replace("\\", "/")
    group = {"group_column": "place"} if places else {}
    trainer = check_trains(clip, processor, config, splits["train"], splits["test"], **group)
    assert set(trainer.evaluation_results["eval"].group_accuracies) == ({"left", "right"} if places else set(names))


def test_a_metadata_file_in_json_lines_with_labels_of_its_own(folder, clip, processor, config):
    path = folder(places=False)
    for split in ("train", "test"):
        with (path / split / "metadata.jsonl").open("w") as file:
            for number, image in enumerate(sorted((path / split).rglob("*.png"))):
                name = image.relative_to(path / split).as_posix()
                print(json.dumps({"file_name": name, "label": "fern" if number % 2 == 0 else "owl"}), file=file)
    splits = load_splits(path)
    trainer = check_trains(clip, processor, config, splits["train"], splits["test"], regularizer="kl")
    assert trainer.class_names == ("fern", "owl")


def test_parquet(tmp_path, clip, processor, config):
    (tmp_path / "data").mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        make_dataset(16, seed).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = load_splits(tmp_path / "data")
    assert splits["train"].features["label"].names == CLASS_NAMES
    check_trains(clip, processor, config, splits["train"], splits["test"], group_column="group")


@pytest.mark.parametrize("streaming", [True, False])
def test_webdataset(streaming, tmp_path, clip, processor, config):
    write_shards(tmp_path / "shards")
    splits = load_splits(tmp_path / "shards", streaming=streaming)
    check_trains(clip, processor, config, splits["train"], class_names=CLASS_NAMES)
    rows = [(row["image"].getpixel((0, 0)), row["label"]) for row in splits["test"]]
    assert rows == [(row["image"].getpixel((0, 0)), row["label"]) for row in make_dataset(16, 1)]


def test_what_save_to_disk_has_written(tmp_path):
    DatasetDict(train=make_dataset(8), test=make_dataset(4)).save_to_disk(tmp_path / "both")
    make_dataset(8).save_to_disk(tmp_path / "one")
    assert {name: len(part) for name, part in load_splits(tmp_path / "both").items()} == {"train": 8, "test": 4}
    assert set(load_splits(tmp_path / "one")) == {"train"}


@pytest.mark.parametrize("content", [None, b"a\n1\n2,3,4\n"])
def test_a_card_whose_files_cannot_be_read_is_refused(content, tmp_path):
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: rows/*.csv\n---\n")
    if content is not None:
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows" / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"as its card says .*; correct the card, or remove it"):
        load_splits(tmp_path)


def test_an_id_of_the_hub_goes_to_the_hub(monkeypatch):
    asked = []

    def answer(*arguments, **settings):
        asked.append((arguments, settings))
        return DatasetDict(train=make_dataset(8).rename_column("image", "jpg"))

    monkeypatch.setattr(loading, "load_dataset", answer)
    assert "image" in load_splits("someone/owls", "large", streaming=True)["train"].column_names
    assert asked == [(("someone/owls", "large"), {"streaming": True})]


@pytest.mark.parametrize("places", [True, False], ids=["metadata.csv", "folders alone"])
def test_a_folder_of_images_as_an_iterable_dataset(places, folder, clip, processor, config):
    splits = load_splits(folder(places), streaming=True)
    assert isinstance(splits, IterableDatasetDict)
    trainer = check_trains(clip, processor, config, splits["train"])
    assert trainer.class_names == tuple(sorted(CLASS_NAMES))


def test_what_save_to_disk_wrote_can_be_streamed_and_has_no_configurations(tmp_path, dataset):
    dataset.save_to_disk(tmp_path / "rows")
    streamed = load_splits(tmp_path / "rows", streaming=True)
    assert isinstance(streamed, IterableDatasetDict)
    assert [row["label"] for row in streamed["train"]] == dataset["label"][:]
    with pytest.raises(ValueError, match="has no configurations, but 'large' was chosen"):
        load_splits(tmp_path / "rows", "large")


def test_what_is_neither_here_nor_on_the_hub_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder or file 'nowhere' here, and no such dataset"):
        load_splits("nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no folder '\./photos'; pass a folder"):
        load_splits("./photos")


@pytest.mark.parametrize("kind", ["ClassLabel", "strings", "integers with names"])
def test_labels_of_every_kind_mean_the_same(kind, clip, processor, config):
    rows, settings = make_dataset(16, class_names=sorted(CLASS_NAMES)), {}
    expected = evaluate_zero_shot(clip, processor, rows, progress=False)
    labels, names = rows["label"], rows.features["label"].names
    if kind == "strings":
        rows = rows.remove_columns("label").add_column("label", [names[label] for label in labels])
    elif kind == "integers with names":
        rows, settings = rows.remove_columns("label").add_column("label", list(labels)), {"class_names": names}
    assert evaluate_zero_shot(clip, processor, rows, progress=False, **settings).loss == expected.loss
    trainer = check_trains(clip, processor, config, rows, rows, **settings)
    assert trainer.class_names == tuple(names)


def test_integers_without_names_are_refused_with_what_would_do():
    rows = Dataset.from_dict({"image": [None], "label": [0]})
    with pytest.raises(ValueError, match=r"Pass class_names=\[...\] in label order, or cast"):
        resolve_columns(rows, ColumnSettings(), what="train_dataset")


def test_underscores_in_class_names_are_read_as_words(folder, clip, processor, config):
    """As folders have to be called: the captions are those of the names with spaces, and so are the results."""
    names = ["blue_jay", "fire_truck", "grey_owl", "red_fox"]
    splits = load_splits(folder(class_names=names))
    trainer = StarFTTrainer(clip, config(), splits["train"], processing_class=processor)
    assert trainer.bank.caption(1, 0) == "a photo of a fire truck."
    assert "fire truck" in trainer.bank.spurious_caption(1, 0, 0)
    words = splits["test"].cast_column("label", ClassLabel(names=[name.replace("_", " ") for name in names]))
    scored = [evaluate_zero_shot(clip, processor, rows, progress=False).loss for rows in (splits["test"], words)]
    assert scored[0] == scored[1]


def test_columns_that_do_not_fit_are_listed():
    rows = make_dataset().rename_columns({"image": "picture", "label": "species"})
    columns = r"\['picture', 'species', 'group', 'note'\]"
    with pytest.raises(ValueError, match=f"no column 'image'; its columns are {columns}. Set image_column"):
        resolve_columns(rows, ColumnSettings(), what="train_dataset")
    with pytest.raises(ValueError, match=r"no column 'label'.*Set label_column to the right one"):
        resolve_columns(rows, ColumnSettings(image_column="picture"), what="train_dataset")


def test_the_datasets_library_reads_the_same(folder):
    """Nothing of ours gets between a user and `load_dataset` where that does it alone."""
    path = folder(places=False)
    own, theirs = load_splits(path)["train"], load_dataset("imagefolder", data_dir=str(path), split="train")
    assert own.features == theirs.features
    assert list(own["label"]) == list(theirs["label"])


def test_a_parquet_file_is_read_alone_and_a_table_without_a_heading_whole(tmp_path):
    """What lies beside a file is not asked for, and the first line of a table may be an image."""
    rows = make_dataset(4)
    write_folder(tmp_path, size=8)
    rows.select_columns(["image", "label"]).to_parquet(tmp_path / "rows.parquet")
    (splits,) = load_splits(tmp_path / "rows.parquet", validation_split=0).values()
    assert splits["label"][:] == rows["label"][:]
    (tmp_path / "list.csv").write_text("train/owl/0.png,owl\ntrain/truck/1.png,truck\n")
    (splits,) = load_splits(tmp_path / "list.csv", validation_split=0).values()
    assert [splits.features["label"].int2str(label) for label in splits["label"]] == ["owl", "truck"]


@pytest.mark.parametrize("labels", [[None, 1, 2, 3], ["owl", "fern", None, "owl"]], ids=str)
def test_rows_of_parquet_without_a_label_are_left_out_and_counted(labels, tmp_path):
    rows = make_dataset(4).select_columns(["image"]).add_column("label", labels)
    rows.to_parquet(tmp_path / "train.parquet")
    found = read_data(tmp_path, validation_split=0)
    missing = labels.index(None)
    assert found.left_out == {f"train: row {missing}": "it has no label"}
    kept = found.splits["train"]
    assert kept["image"][:] == [image for row, image in enumerate(rows["image"]) if row != missing]
    assert read_data(tmp_path, validation_split=0).splits["train"]._fingerprint == kept._fingerprint
    # They are predicted, and may be images of none of the classes.
    assert len(read_all_images(tmp_path).splits["train"]) == 4
    assert len(read_data(tmp_path, None, Wanted(several=True), validation_split=0).splits["train"]) == 4
