"""`--preset`: the settings of a published command, over which those that are passed win."""

import json

import pytest

from starft_hf import StarFTConfig
from starft_hf.cli.arguments import check_required, settings_of
from starft_hf.cli.main import make_parser
from starft_hf.evaluation.catalog import imagenet_templates
from starft_hf.hub.record import RunRecord
from tests.support.layouts import write_waterbirds
from tests.support.tiny import TINY_CLIP, write_folder


def settings(command, *arguments):
    """The settings that a run of a command records."""
    line = ["--model", str(TINY_CLIP), *arguments]
    options = make_parser(command).parse_args(line if "--benchmark" in line else [*line, "--dataset", "owner/data"])
    check_required(options)
    return settings_of(options).recorded_settings


@pytest.mark.parametrize("command", ["train", "compare", "precompute"])
def test_the_preset_is_that_of_python(command, tmp_path):
    assert settings(command, "--preset", "paper") == StarFTConfig.paper(tmp_path).recorded_settings


def test_what_is_passed_wins(tmp_path):
    lines = ["preset: paper", "reg_weight: 2", "learning_rate: 3.0e-5", "eval_templates: ['{}.']"]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    changes = {"reg_weight": 2.0, "learning_rate": 4e-5, "eval_templates": ["{}."], "crop_scale": None}
    passed = ["--lr", "4e-5", "--no_random_crop", "--batch-size", "7"]
    expected = StarFTConfig.paper(tmp_path, per_device_train_batch_size=7, **changes).recorded_settings
    assert settings("train", "--config", str(tmp_path / "run.yaml"), *passed) == expected


def test_its_prompts_are_taken_rather_than_those_of_a_benchmark(tmp_path):
    write_waterbirds(tmp_path)
    found = settings("train", "--preset", "paper", "--benchmark", "waterbirds", "--data_dir", str(tmp_path))
    assert (found["eval_templates"], found["reg_weight"]) == (list(imagenet_templates()), 0.5)


def test_unknown_presets_are_refused_with_the_nearest_name(run):
    for command in ("train", "compare", "precompute"):
        error = run(command, "--model", TINY_CLIP, "--dataset", "owner/data", "--preset", "papers", code=2)
        assert "unknown preset 'papers'. Did you mean 'paper'?" in error


def test_a_run_by_the_preset(run, tmp_path):
    write_folder(tmp_path / "photos", size=8)
    write_folder(tmp_path / "photos", size=8, split="test")
    train = ["train", "--preset", "paper", "--model", TINY_CLIP, "--dataset", "photos", "--output_dir", "out"]
    content = json.loads(run(*train, "--num_train_epochs", "2", "--use_cpu", "--save_strategy", "no", "--json"))
    assert (content["method"], set(content["results"]), set(content["before"])) == ("star", {"test"}, {"test"})
    recorded = RunRecord.load(tmp_path / "out").config
    assert (recorded["warmup_steps"], recorded["warmup_from_zero"], recorded["num_train_epochs"]) == (500, False, 2)
    assert recorded["eval_templates"] == list(imagenet_templates())
