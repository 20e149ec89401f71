"""What commands evaluate on, and what they say of it."""

import json
import shutil

import pytest
from datasets import Dataset, DatasetDict

from starft_hf.cli import main
from starft_hf.cli.data import load_training_data
from starft_hf.cli.main import make_parser
from starft_hf.data import columns
from tests.support.tiny import TINY_CLIP, make_dataset, write_folder


FAST = ["--per_device_train_batch_size", "8", "--max_steps", "1", "--use_cpu", "--save_strategy", "no"]
RUN = ["--model", TINY_CLIP, "--dataset", "photos"]


@pytest.fixture
def photos(tmp_path, run):
    for seed, split in enumerate(("train", "validation", "test")):
        write_folder(tmp_path / "photos", seed=seed, split=split)
    return tmp_path / "photos"


def test_several_splits_and_another_dataset_to_evaluate_on(run, photos):
    def loaded(*arguments):
        options = make_parser("train").parse_args(["--model", "m", "--dataset", "photos", *arguments])
        return {name: len(rows) for name, rows in load_training_data(options).evaluation.items()}

    train = ["train", *RUN, *FAST, "--json"]
    found = json.loads(run(*train, "--eval_split", "validation", "test", "--output_dir", "a"))["results"]
    assert set(found) == {"validation", "test"}
    assert loaded() == {"test": 16}
    # A folder of images without splits, which `datasets` calls "train".
    assert loaded("--eval_dataset", "photos/validation") == {"validation": 16}
    DatasetDict(a=make_dataset(8), b=make_dataset(8)).save_to_disk("other")
    error = run(*train, "--eval_dataset", "other", "--output_dir", "c", code=2)
    assert "other has the splits a, b, and none of them" in error
    assert "--eval_split" in error
    error = run(*train, "--eval_split", "validation", "dev", "--output_dir", "c", code=2)
    assert "unknown split 'dev'" in error


def test_nothing_to_evaluate_on(run, tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "photos")
    alone = ["--validation_split", "0"]
    shown = run("train", *RUN, *FAST, *alone, "--output_dir", "out")
    assert "photos has no split with labels or captions for evaluation (test or validation), so nothing" in shown
    assert "pass --eval_split or --eval_dataset" in shown
    error = run("train", *RUN, *FAST, *alone, "--output_dir", "other", "--eval_strategy", "epoch", code=2)
    assert "starft train: warning: photos has no split with labels or captions for evaluation" in error
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("more", [[], ["--eval_split", "validation", "test"]])
def test_a_misspelt_group_column_is_refused_before_a_model_is_loaded(run, photos, command, more, monkeypatch):
    monkeypatch.setattr("starft_hf.models.loading.AutoModel", None)
    error = run(command, *RUN, *FAST, "--group_column", "plcae", *more, code=2)
    assert "has no column 'plcae'" in error
    assert "Set --group_column to the right one" in error


def test_a_misspelt_group_column_of_a_training_set_alone(run, tmp_path):
    write_folder(tmp_path / "photos")
    assert "--dataset has no column 'plcae'" in run(
        "train", *RUN, *FAST, "--validation_split", "0", "--group_column", "plcae", code=2
    )


@pytest.mark.parametrize("splits", [["test"], ["validation", "test"]])
def test_nobody_is_advised_to_choose_by_a_test_set(run, photos, splits):
    choose = ["--load_best_model_at_end", "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    choose += ["--metric_for_best_model", "eval_dev_accuracy", "--eval_split", *splits]
    error = run("train", *RUN, *FAST[:-2], *choose, code=2)
    assert "'eval_validation_worst_group_accuracy'" in error
    assert "eval_test_" not in error
    assert ("--eval_split validation test" in error) == (splits == ["test"])


def test_evaluate_reads_what_the_run_of_a_model_had(run, tmp_path):
    rows = make_dataset(16).rename_columns({"image": "img", "label": "kind", "group": "place"})
    DatasetDict(train=rows, test=rows).save_to_disk("photos")
    named = ["--image_column", "img", "--label_column", "kind", "--group_column", "kind", "place"]
    settings = ["--caption_template", "a {} of some kind.", "--output_dir", "out", "--json"]
    tuned = json.loads(run("train", *RUN, *FAST, *named, *settings))["results"]["test"]
    again = json.loads(run("evaluate", "out", "photos", "--json"))
    assert again["group_accuracies"] == tuned["group_accuracies"]
    assert again["loss"] == pytest.approx(tuned["loss"], rel=1e-5)
    assert (again["dataset"], again["split"]) == ("photos", "test")
    assert "out on photos, split test" in run("evaluate", "out", "photos")
    without = rows.remove_columns("place")
    without.save_to_disk("without")
    assert "owl" in json.loads(run("evaluate", "out", "without", "--json"))["group_accuracies"]
    error = run("evaluate", "out", "without", "--group_column", "plcae", code=2)
    assert "without has an unknown --group_column 'plcae'" in error


def test_evaluate_names_the_split_it_used(run, photos, capsys):
    assert json.loads(run("evaluate", TINY_CLIP, "photos/validation", "--json"))["split"] == "validation"
    assert "photos, split test" in run("evaluate", TINY_CLIP, "photos")
    Dataset.from_list([*make_dataset(8)], features=make_dataset(8).features).save_to_disk("rows")
    assert json.loads(run("evaluate", TINY_CLIP, "rows", "--json"))["split"] == "rows"


def test_groups_across_classes_are_warned_of_once(run, photos, caplog):
    columns.logger.warning_once.cache_clear()
    for split in ("train", "test"):
        run("evaluate", TINY_CLIP, "photos", "--group_column", "place", "--split", split)
    (warning,) = [record for record in caplog.records if "have images of most classes" in record.getMessage()]
    assert "group_column=['label', 'place']" in warning.getMessage()
    columns.logger.warning_once.cache_clear()
    caplog.clear()
    run("evaluate", TINY_CLIP, "photos", "--group_column", "label", "place")
    assert "most classes" not in caplog.text


def test_compare_trains_adapters_and_repairs_runs(run, photos):
    compare = ["compare", *RUN, *FAST[:-2], "--disable_tqdm", "true", "--methods", "FLYP"]
    found = json.loads(run(*compare, "--peft", "lora", "--output_dir", "a", "--json"))["runs"]
    assert [entry["interpolated"] for entry in found] == [None, 0.5]
    error = run(*compare, "--repair_split", "validation", "--output_dir", "c", code=2)
    assert "--repair_split has no effect: none of --methods ends with a repair" in error
    error = run(*compare, "FLYP + repair", "--repair_split", "train", "--output_dir", "c", code=2)
    assert "neither trained nor reported on, and 'train' of photos is not one; pass --repair_split" in error
    error = run(*compare, "--reference_model", TINY_CLIP, "--output_dir", "c", code=2)
    assert "--reference_model has no effect: none of the methods has a reference" in error


def test_a_head_is_matched_with_the_classes_of_the_data_by_name(run, photos):
    """Folders are sorted; the run had its own order, which `predict` keeps."""
    order = ["violin", "owl", "truck", "fern"]
    train = [*RUN, *FAST, "--base_loss", "cross_entropy", "--learning_rate", "1e-3", "--class_names", *order]
    tuned = json.loads(run("train", *train, "--output_dir", "out", "--json"))["results"]["test"]
    by_folders = json.loads(run("evaluate", "out", "photos", "--json"))
    given = json.loads(run("evaluate", "out", "photos", "--class_names", *sorted(order), "--json"))
    predicted = json.loads(run("predict", "out", "photos", "--split", "test", "--output", "p.csv", "--json"))
    for found in (by_folders, given):
        assert found["group_accuracies"] == pytest.approx(tuned["group_accuracies"])
        assert found["loss"] == pytest.approx(tuned["loss"], rel=1e-5)
        assert found["accuracy"] == pytest.approx(predicted["accuracy"])


def test_that_the_data_have_fewer_classes_than_the_run_is_said(run, photos, tmp_path, capsys):
    run("train", *RUN, *FAST, "--output_dir", "out")
    few = tmp_path / "few"
    for name in ("owl", "fern"):
        shutil.copytree(photos / "test" / name, few / name)
    assert main(["evaluate", "out", "few"]) == 0
    assert "classified among the 2 classes of few, and out was fine-tuned on 4" in capsys.readouterr().err
    assert main(["evaluate", "out", "few", "--class_names", "fern", "owl", "truck", "violin"]) == 0
    assert "classified among" not in capsys.readouterr().err
