"""What runs and other commands have written into a folder of data is not data."""

import json

import pytest
import torch

from starft_hf.data.all_images import read_all_images
from starft_hf.data.loading import load_splits, read_data
from starft_hf.hub.prediction.table import table_of, write_table
from starft_hf.hub.record import RECORD_FILE
from starft_hf.training.checkpointing.files import STATE_FILE
from tests.support.layouts import write_images
from tests.support.tiny import make_dataset, write_shards


CLASSES = [f"{name}/{number}.png" for name in ("owl", "fern") for number in range(8)]
SPLITS = [f"{split}/{file}" for split in ("train", "test") for file in CLASSES]
RESULTS = {
    "a trained model": [RECORD_FILE, "config.json", "figures/groups-0.png", "figures/overview-0.png"],
    "a checkpoint": [STATE_FILE, "one/1.png"],
    "a model": ["config.json", "model-00001-of-00002.safetensors", "one/1.png"],
    "an adapter": ["adapter_config.json", "adapter_model.safetensors", "one/1.png"],
    "a report": ["report.json", "report.md", "plot.png"],
    "what tune has written": ["tuning.json", "tuning.md", "tuning.png"],
    "what discover has written": ["discovery.md", "heat_map.png", "examples.png"],
    "a Space": ["space.json", "app.py", "examples/0.png"],
    "a log of Weights & Biases": ["run-1a2b.wandb", "files/media/images/1.png"],
}


def write(folder, *files):
    write_images(folder, *(file for file in files if file.endswith(".png")))
    for file in files:
        if not (folder / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("{}")


def classes_of(splits):
    return {name: sorted(rows.features["label"].names) for name, rows in splits.items()}


@pytest.mark.parametrize("files", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize(
    ("data", "place"), [(CLASSES, "run"), (CLASSES, "owl/run"), (SPLITS, "run"), (SPLITS, "train/run")]
)
def test_what_was_written_into_a_folder_of_data_is_skipped(data, place, files, tmp_path):
    write(tmp_path, *data)
    before = load_splits(tmp_path)
    write(tmp_path / place, *files)
    found = read_data(tmp_path)
    assert classes_of(found.splits) == classes_of(before)
    assert set(map(tuple, classes_of(found.splits).values())) == {("fern", "owl")}
    assert {name: len(rows) for name, rows in found.splits.items()} == {
        name: len(rows) for name, rows in before.items()
    }
    ((path, why),) = found.left_out.items()
    assert path == place
    assert why.endswith(" shows")
    images = read_all_images(tmp_path)
    assert sum(map(len, images.splits.values())) == len(data)
    assert images.left_out == found.left_out


@pytest.mark.parametrize("what", RESULTS)
def test_a_folder_that_is_a_result_is_not_taken_for_data(what, tmp_path):
    # Within a folder that holds nothing but one, it is skipped as well.
    write(tmp_path / "run", *[file for file in RESULTS[what] if not file.startswith(("one/", "files/"))])
    for read in (read_data, read_all_images):
        with pytest.raises(ValueError, match=rf"run' is {what}, as its .+ shows, not data: pass the folder of the im"):
            read(tmp_path / "run")
        with pytest.raises(ValueError, match=rf"run is skipped: it is {what}"):
            read(tmp_path)


def test_data_in_the_folder_of_a_run_are_read_without_its_figures(tmp_path):
    write(tmp_path, *RESULTS["a trained model"], *CLASSES, "tuning.png", "photos/owl/1.png", "photos/fern/1.png")
    assert classes_of(load_splits(tmp_path / "photos", validation_split=0)) == {"train": ["fern", "owl"]}
    found = read_data(tmp_path)
    assert {"fern", "owl"} <= set(found.splits["train"].features["label"].names)
    assert "figures" not in found.splits["train"].features["label"].names
    assert set(found.left_out) == {"figures", "tuning.png"}


def test_a_users_own_folders_are_read_whatever_they_are_called(tmp_path):
    names = ("run", "figures", "checkpoint-2", "starft-output", "audit")
    write(tmp_path, *(f"{name}/{number}.png" for name in names for number in range(4)))
    write(tmp_path, "run/config.json", "run/tuning.json", "audit/audit.json", "figures/report.json", "run/labels.json")
    found = read_data(tmp_path)
    assert classes_of(found.splits)["train"] == sorted(names)
    assert not found.left_out


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("named", [True, False], ids=["files", "rows"])
def test_predictions_beside_data_are_not_read(ending, named, tmp_path):
    write(tmp_path, *SPLITS)
    rows = torch.tensor([[0.9, 0.1, 0.0, 1.0]]).double().expand(len(SPLITS), -1)
    known = {"label": ["owl"] * len(SPLITS), "split": ["train"] * len(SPLITS)}
    write_table(table_of(SPLITS if named else None, rows, ["fern", "owl"], known, 2), tmp_path / f"p.{ending}")
    found = read_data(tmp_path)
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 16, "test": 16}
    assert found.left_out == {f"p.{ending}": "it is a table of predictions"}
    if named and ending == "csv":
        # Who passes it wants it.
        assert len(read_data(tmp_path / "p.csv", validation_split=0).splits["train"]) == len(SPLITS)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_predictions_beside_shards_are_not_a_shard(kind, tmp_path):
    folder = tmp_path / "shards"
    if kind == "tar":
        write_shards(folder)
    else:
        folder.mkdir()
        make_dataset(16).to_parquet(folder / "train-00000-of-00001.parquet")
    rows = torch.tensor([[0.9, 0.1, 0.0, 1.0]]).double()
    write_table(table_of(["a"], rows, ["fern", "owl"], {}, 1), folder / "p.parquet")
    found = read_data(folder, validation_split=0)
    assert len(found.splits["train"]) == 16
    assert found.left_out == {"p.parquet": "it is a table of predictions"}


def test_training_a_second_time_in_the_folder_of_the_data(run_in_data):
    first, second = run_in_data(), run_in_data("--output_dir", "second")
    assert first == second == ["fern", "owl"]


@pytest.fixture
def run_in_data(tmp_path, monkeypatch):
    """Trains on the current folder, which gets the run, and gives the classes of the run."""
    from starft_hf.cli import main
    from tests.support.tiny import TINY_CLIP

    write(tmp_path, *CLASSES)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        command = ["train", "--model", TINY_CLIP, "--dataset", ".", "--max_steps", "1", "--use_cpu", *arguments]
        assert main([str(argument) for argument in command]) == 0
        folder = tmp_path / (arguments[-1] if arguments else "starft-output")
        assert (folder / "figures").is_dir()
        return json.loads((folder / RECORD_FILE).read_text())["class_names"]

    return run
