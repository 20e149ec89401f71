"""`starft tune` on folders of images."""

import json

import pytest

from starft_hf import load
from starft_hf.training.checkpointing.interruption import TrainingInterrupted
from tests.support.tiny import TINY_CLIP, write_folder


NAMES = ("red fox", "blue_jay", "green fern", "grey owl")
FAST = ["--per_device_train_batch_size", "8", "--max_steps", "2", "--use_cpu", "--learning_rate", "1e-2"]
KL = ["--methods", "kl", "--weights", "3"]


@pytest.fixture
def command(tmp_path):
    for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
        write_folder(tmp_path / "three", NAMES, seed=seed, split=split)
        if split != "validation":
            write_folder(tmp_path / "two", NAMES, seed=seed, split=split)
    return ["tune", "--model", TINY_CLIP, "--group_column", "place", *FAST]


def test_the_choice_is_by_validation_and_what_was_chosen_is_tested(command, run, tmp_path, capsys):
    content = json.loads(run(*command, "--dataset", "three", *KL, "--output_dir", "out", "--json"))
    assert set(content["best"]) == {"method", "reg_weight", "alpha"}
    assert [row["method"] for row in content["table"]] == ["zero-shot", "kl"]
    assert (content["validation"], content["output_dir"], content["select_by"]) == ("validation", "out", "worst_group")
    zero_shot = content["test"]["test"]["zero-shot"]
    assert set(zero_shot["group_accuracies"]) == {"left", "right"}
    assert load(tmp_path / "out").class_names == tuple(sorted(NAMES))
    # The same command again does nothing, and other settings are refused.
    assert json.loads(run(*command, "--dataset", "three", *KL, "--output_dir", "out", "--json")) == content
    error = run(*command, "--dataset", "three", "--methods", "kl", "--weights", "4", "--output_dir", "out", code=2)
    assert "other settings or data: candidates had kl@3" in error
    assert "choose another --output_dir" in error


def test_without_a_validation_split_some_of_the_training_data_is_held_out(command, run, capsys):
    shown = run(*command, "--dataset", "two", "--methods", "FLYP", "--test_split", "none", "--output_dir", "out")
    assert "FLYP" in shown
    assert "only a test set shows how good it is" in " ".join(shown.split())
    error = run(*command, "--dataset", "two", "--methods", "FLYP", "--validation_split", "0", code=2)
    assert "no validation split, and none can be held out" in error


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--eval_split", "test"], "what is chosen by test data cannot be measured on them"),
        (["--eval_split", "validation", "train"], "pass that for testing as --test_split"),
        (["--test_split", "validation"], "--test_split validation is the split to choose by"),
        (["--test_split", "tset"], "unknown split 'tset'. Did you mean 'test'"),
        (["--select_by", "wurst_group"], "unknown --select_by 'wurst_group'. Did you mean 'worst_group'"),
        (["--methods", "k1"], "unknown method 'k1'. Did you mean 'kl'"),
        (["--output_dir", "three"], "no tuning.json to continue from"),
    ],
)
def test_wrong_use_is_refused(arguments, match, command, run):
    error = run(*command, "--dataset", "three", *arguments, code=2)
    assert match in error
    assert len([line for line in error.splitlines() if "error:" in line]) == 1


def test_an_interruption_is_exit_code_75(command, run, monkeypatch):
    def interrupted(*args, **kwargs):
        raise TrainingInterrupted

    monkeypatch.setattr("starft_hf.training.tuning.tune", interrupted)
    assert "the same command continues" in run(*command, "--dataset", "three", *KL, code=75)
