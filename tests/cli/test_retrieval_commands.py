"""Data with captions on the command line: what is retrieved, what is classified, and what is refused."""

import csv
import json
import re

import pytest
from transformers import AutoProcessor, CLIPModel

from starft_hf import evaluate_retrieval
from starft_hf.data.loading import load_splits
from tests.support.tiny import TINY_CLIP, write_captions, write_folder


FAST = ["--per_device_train_batch_size", "8", "--max_steps", "1", "--use_cpu", "--save_strategy", "no"]


@pytest.fixture
def captions(tmp_path):
    for split, size in (("train", 16), ("test", 10)):
        write_captions(tmp_path / "captions", size, seed=size, split=split)


def test_captions_without_labels_are_retrieved(run, captions):
    found = json.loads(run("evaluate", TINY_CLIP, "captions", "--json"))
    rows = load_splits("captions")["test"]
    assert len(rows) > 10
    model, processor = CLIPModel.from_pretrained(TINY_CLIP), AutoProcessor.from_pretrained(TINY_CLIP)
    expected = evaluate_retrieval(model, processor, rows, progress=False)
    assert found == {**expected.as_dict(), "dataset": "captions", "split": "test"}
    shown = run("evaluate", TINY_CLIP, "captions", "--task", "retrieval", "--split", "test")
    assert re.search(r"image to text +│ +10 │", shown)
    assert f"{100 * expected.mean_recall:.1f}" in shown


def test_labels_are_classified_unless_retrieval_is_asked_for(run, tmp_path):
    write_folder(tmp_path / "photos")
    with (tmp_path / "photos" / "train" / "metadata.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    with (tmp_path / "photos" / "train" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*head, "caption"], *([*line, f"a photo of a {line[1]}"] for line in lines)])
    assert "accuracy" in json.loads(run("evaluate", TINY_CLIP, "photos", "--json"))
    found = json.loads(run("evaluate", TINY_CLIP, "photos", "--task", "retrieval", "--json"))
    assert (found["images"], found["captions"]) == (16, 2)
    error = run("evaluate", TINY_CLIP, "photos", "--caption_column", "caption", code=2)
    assert "--caption_column has no effect: the images are classified" in error
    assert "--task retrieval" in error


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["captions", "--templates", "a {}"], "--templates has no effect: captions are retrieved"),
        (["captions", "--group_column", "place"], "--group_column has no effect: captions are retrieved"),
        (["captions", "--caption_column", "text", "--task", "retrieval"], "no column 'text'"),
        (["--benchmark", "waterbirds", "--task", "retrieval"], "--task has no effect: --benchmark waterbirds decides"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(run, captions, flags, reason, monkeypatch):
    monkeypatch.setattr("starft_hf.models.loading.AutoModel", None)
    assert reason in run("evaluate", TINY_CLIP, *flags, code=2)


def test_training_on_captions_reports_retrieval(run, captions):
    train = ["train", "--model", TINY_CLIP, "--dataset", "captions", *FAST, "--output_dir", "out", "--json"]
    found = json.loads(run(*train))
    assert set(found["before"]["test"]) == set(found["results"]["test"])
    assert 0 <= found["results"]["test"]["mean_recall"] <= 1
    assert found["method"] == "kl"
    error = run(*train[:-3], "--output_dir", "b", "--metric_for_best_model", "eval_test_accuracy", code=2)
    assert "eval_test_mean_recall" in error
    assert "has no column 'label'" in run("evaluate", "out", "captions", "--task", "classification", code=2)
