"""Where commands write: `~` in any spelling, what is there already, and places that cannot be written to."""

import json
import os
from pathlib import Path

import pytest

from starft_hf import RobustnessReport, SpuriosityPool
from starft_hf.cli import main
from starft_hf.cli.main import COMMANDS, make_parser
from starft_hf.hub.space import SpaceSettings, write_space
from starft_hf.models.heads import save_head
from starft_hf.weights.merging import merge_checkpoint
from tests.support import report_runs
from tests.support.tiny import TINY_CLIP, write_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home, beside the folder that commands run in, with a folder of somebody's run."""
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    (home / "run" / "model.safetensors").write_text("of another run")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    return home


DATA = ["--model", TINY_CLIP, "--dataset", "photos"]


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(
    ("command", "setting"),
    [
        (["train", *DATA], "output_dir"),
        (["compare", *DATA], "output_dir"),
        (["tune", *DATA], "output_dir"),
        (["demo"], "output"),
        (["interpolate", TINY_CLIP, TINY_CLIP], "output"),
        (["merge", TINY_CLIP], "output"),
        (["export", TINY_CLIP], "output_dir"),
        (["repair", TINY_CLIP, "photos"], "output_dir"),
        (["audit", TINY_CLIP, "photos"], "output"),
        (["discover", TINY_CLIP, "photos"], "output"),
        (["space", "--model", f"tiny={TINY_CLIP}", "--no_run"], "folder"),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else None,
)
def test_a_run_in_the_home_is_never_overwritten(command, setting, in_file, run, home, tmp_path):
    write_folder(tmp_path / "photos", size=8)
    if in_file:
        (tmp_path / "settings.yaml").write_text(f"{setting}: ~/run\n")
    where = ["--config", "settings.yaml"] if in_file else [f"--{setting}=~/run"]
    said = run(*command, *where, code=2)
    assert str(home / "run") in said
    assert [path.name for path in (home / "run").iterdir()] == ["model.safetensors"]
    assert not Path("~").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_is_expanded(command, home):
    parser = make_parser(command)
    for action in parser._actions:
        if action.type is Path or action.dest.endswith("_dir"):
            assert str(parser._get_value(action, "~/x")) == str(home / "x"), action.dest


def test_a_model_in_the_home_is_what_it_would_be_with_its_whole_path(run, home, tmp_path):
    (home / "photos").mkdir()
    write_folder(home / "photos", size=8, split="test")
    (home / "settings.yaml").write_text("dataset: ~/photos\n")
    content = json.loads(run("evaluate", TINY_CLIP, "--config=~/settings.yaml", "--json"))
    assert content["dataset"] == str(home / "photos")


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (lambda folder: RobustnessReport(report_runs.demo_runs()).save(folder), "report.html"),
        (lambda folder: SpuriosityPool(["{} at night."]).save(f"{folder}/pool.json"), "pool.json"),
        (lambda folder: write_space(folder, SpaceSettings({"one": "you/owls"}, ["owl"])), "app.py"),
        (lambda folder: save_head({}, ["owl"], folder), "classification_head.safetensors"),
    ],
    ids=["report", "pool", "space", "head"],
)
def test_what_is_saved_from_python_is_in_the_home(write, file, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = write("~/new")
    assert (home / "new" / file).is_file()
    assert found is None or found.is_relative_to(home)
    assert not Path("~").exists()


def test_a_merged_model_in_the_home_is_not_overwritten(home):
    with pytest.raises(FileExistsError, match="home"):
        merge_checkpoint(TINY_CLIP, "~/run")


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that nothing can be written to, for the administrator neither."""
    folder, access = tmp_path / "locked", os.access
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["train", *DATA, "--output_dir"],
        ["train", *DATA, "--save_strategy", "no", "--output_dir"],
        ["train", *DATA, "--save_strategy", "no", "--resume", "--output_dir"],
        ["compare", *DATA, "--output_dir"],
        ["tune", *DATA, "--output_dir"],
        ["demo", "--output"],
        ["interpolate", TINY_CLIP, TINY_CLIP],
        ["merge", TINY_CLIP],
        ["export", TINY_CLIP, "--output_dir"],
        ["repair", TINY_CLIP, "photos", "--output_dir"],
        ["audit", TINY_CLIP, "photos", "--output"],
        ["discover", TINY_CLIP, "photos", "--output"],
        ["report", "photos", "--output"],
        ["space", "--model", "tiny=you/owls", "--no_run", "--folder"],
        ["generate-pool", "--domain", "birds", "--class_names", "owl", "--llm", "none", "--output"],
    ],
    ids=lambda command: command[0],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(command, run, locked, tmp_path):
    """There is no image, no adapter and no report, which nobody gets to know."""
    (tmp_path / "photos").mkdir()
    assert f"nothing can be written to '{locked}'" in run(*command, "locked/new", code=2)
    assert list(locked.iterdir()) == []


def test_a_table_that_cannot_be_written_is_named_as_it_was_passed(run, locked, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(locked)
    assert "output is 'new.csv', and nothing" in run("predict", TINY_CLIP, "../photos", "-o", "new.csv", code=2)


FAST = ["--max_steps", "1", "--per_device_train_batch_size", "8", "--use_cpu", "--disable_tqdm", "true"]


@pytest.mark.parametrize("command", [["train"], ["compare", "--methods", "zero-shot"]], ids=["train", "compare"])
def test_results_are_shown_even_if_they_cannot_be_saved(command, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        write_folder(tmp_path / "photos", size=8, split=split)
    monkeypatch.setattr(RobustnessReport, "save", fail)
    assert main([*map(str, [*command, *DATA, *FAST]), "--output_dir", "out"]) == 1
    shown = capsys.readouterr()
    assert "zero-shot" in shown.out
    assert "No space left on device" in shown.err


def test_a_cache_is_filled_where_nothing_else_can_be_written(run, locked, tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", size=8)
    monkeypatch.chdir(locked)
    run("precompute", "--model", TINY_CLIP, "--dataset", "../photos", *FAST, "--reference_cache_dir", "../cache")
    assert list(locked.iterdir()) == []
