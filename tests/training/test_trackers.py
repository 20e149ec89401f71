"""What W&B and Trackio get at the end of a run, by their own packages, which write it to a folder here."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import TrackioCallback

from starft_hf import StarFTTrainer, compare, tune
from starft_hf.training import trackers
from starft_hf.training.comparison import report_tables, trainer_of
from starft_hf.training.plan import RunInputs
from starft_hf.training.trackers import TrackerReport
from tests.support.tiny import make_dataset


POOL = ["{} in the snow.", "{} at night."]


@pytest.fixture
def trained(clip, processor, config, dataset, tmp_path):
    """Trains with a tracker, on data whose evaluation set is named by its folder."""

    def train(tracker, **settings):
        args = config(report_to=tracker, group_column="group", **{"eval_on_start": True, **settings})
        sets = {str(tmp_path / "photos" / "test"): make_dataset(12, seed=5)}
        trainer = StarFTTrainer(clip, args, dataset, sets, processing_class=processor, spuriosity=POOL)
        trainer.train()
        return trainer

    return train


def assert_is_report(files, tmp_path):
    """A report before and after training, without anything of the machine."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    assert any("before training" in text and text.startswith("<!doctype html>") for text in texts)
    (content,) = (json.loads(text) for text in texts if '"starft_report"' in text)
    assert [run["method"] for run in content["runs"]] == ["before training", "star"]
    assert [list(run["results"]) for run in content["runs"]] == [["test"], ["test"]]
    assert len(content["runs"][1]["log"]) == 3
    assert not any(str(tmp_path) in text for text in texts)


def test_wandb_gets_the_groups_and_the_report_in_the_run_that_is_open(trained, tmp_path, monkeypatch):
    wandb = importlib.import_module("wandb")
    monkeypatch.chdir(tmp_path)
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    for name, value in {"MODE": "offline", "CONSOLE": "off", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    try:
        trainer = trained("wandb")
        run, folder = wandb.run.id, Path(wandb.run.dir)
    finally:
        wandb.finish()
        wandb.teardown()
    (table,) = (folder / "media" / "table" / "eval").glob("groups_*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["dataset", "group", "images", "accuracy", "accuracy before training", "change"]
    (after,), (before,) = trainer.evaluation_results.values(), trainer.zero_shot_results.values()
    assert content["data"] == [
        ["test", name, after.group_sizes[name], accuracy, before.group_accuracies[name], pytest.approx(change)]
        for name, accuracy in after.group_accuracies.items()
        for change in [accuracy - before.group_accuracies[name]]
    ]
    staged = [*(tmp_path / "DATA_DIR" / "artifacts" / "staging").iterdir()]
    assert_is_report([file for file in staged if "starft" in file.read_text(encoding="utf-8")], tmp_path)
    (log,) = (tmp_path / "DIR").glob("wandb/offline-run-*/*.wandb")
    assert f"report-{run}".encode() in log.read_bytes()


@pytest.fixture(scope="module")
def trackio(tmp_path_factory):
    """Trackio, which reads where to write when it is imported."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        # It needs a later huggingface_hub than the lowest that is supported, which is tested without it.
        yield pytest.importorskip("trackio")


def test_trackio_gets_them_too_and_what_follows_is_in_the_same_run(trained, tmp_path, trackio):
    trainer = trained("trackio", project="first")
    # The run was closed after training, and this resumes it.
    trainer.evaluate()
    (run,) = trackio.Api().runs("first")
    assert trainer.args.run_name == run.name
    artifact = trackio.use_artifact(f"report-{run.id}:latest")
    folder = Path(artifact.download(str(tmp_path / "artifact")))
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.json", "report.md"}
    assert_is_report(folder.iterdir(), tmp_path)


def test_a_tracker_that_fails_ends_no_training(trained, trackio, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(trackio, "log_artifact", fail)
    trainer = trained("trackio", project="second", eval_on_start=False)
    assert trainer.state.global_step == 3
    assert "could not be sent to trackio: ConnectionError('no route to host')" in caplog.text


def files_of_run(trackio, project, name, tmp_path):
    """The files of the report in the run of that name."""
    run = trackio.init(project=project, name=name, resume="must")
    folder = Path(trackio.use_artifact(f"report-{run.id}:latest").download(str(tmp_path / "downloaded" / name)))
    trackio.finish()
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert not any(str(tmp_path).encode() in content for content in files.values())
    return files


def test_a_comparison_is_a_run_for_every_training_and_one_for_its_report(
    clip, processor, config, dataset, tmp_path, trackio, caplog
):
    args = config(report_to=["trackio", "tensorboard"], project="third", run_name="all", group_column="group")
    sets = {str(tmp_path / "photos" / "test"): make_dataset(12, seed=5)}
    given = {"methods": ["zero-shot", "FLYP", "kl"], "processing_class": processor, "spuriosity": POOL}
    report = compare(clip, args, dataset, sets, **given)
    # Those of TensorBoard are not sent, which is said before the first training.
    assert "compare logs every training to tensorboard, but its tables and its report only to wandb and" in caplog.text
    assert trackio.context_vars.current_run.get() is None
    runs = {run.name for run in trackio.Api().runs("third")}
    assert runs == {"all", "all: FLYP, seed 0", "all: kl, seed 0"}
    files = files_of_run(trackio, "third", "all", tmp_path)
    assert {*files} == {"report.html", "report.json", "report.md"}
    content = json.loads(files["report.json"])
    assert [(run["method"], run["interpolated"]) for run in content["runs"]] == [
        (run.method, run.interpolated) for run in report.runs
    ]
    assert {name for run in content["runs"] for name in run["results"]} == {"test"}
    assert content["thumbnails"] == {"test": {}}
    tables = report_tables(report.runs)
    assert list(tables["models"]["accuracy"]) == [run.results[name].accuracy for run in report.runs for name in sets]
    assert len(tables["groups"]) == sum(len(run.results[name].group_sizes) for run in report.runs for name in sets)


def test_a_tuning_sends_its_table_once(clip, processor, config, dataset, tmp_path, trackio):
    args = config(report_to="trackio", project="fourth", group_column="group", max_steps=2)
    given = {"methods": ["FLYP"], "alphas": [1], "processing_class": processor, "spuriosity": POOL}
    sets = dataset, make_dataset(seed=4)
    tune(clip, args, *sets, **given)
    # It is finished, and nothing is sent again.
    tune(clip, args, *sets, **given)
    assert sorted(run.name for run in trackio.Api().runs("fourth")) == ["output", "output: FLYP"]
    files = files_of_run(trackio, "fourth", "output", tmp_path)
    assert {*files} == {"tuning.md", "tuning.png"}
    assert files["tuning.md"].decode() == (tmp_path / "output" / "tuning.md").read_text(encoding="utf-8")


class NeverTrackio(TrackioCallback):
    """Trackio's callback without its package."""

    def __init__(self):
        pass


@pytest.mark.parametrize(
    ("in_train", "is_main", "others", "calls"),
    [
        # Interrupted, without a tracker, and in another process than the first, where all evaluate.
        (False, True, [NeverTrackio()], 0),
        (True, True, [TrainerCallback()], 0),
        (True, False, [NeverTrackio()], 1),
    ],
)
def test_when_there_is_nothing_to_send(in_train, is_main, others, calls, config, caplog):
    found = []

    def evaluate():
        found.append(1)
        raise OSError("an image is missing")

    handler = SimpleNamespace(callbacks=others)
    report = TrackerReport(SimpleNamespace(callback_handler=handler, is_in_train=in_train, evaluate_trained=evaluate))
    report.on_train_end(config(), TrainerState(is_world_process_zero=is_main), TrainerControl())
    assert len(found) == calls
    assert ("could not be evaluated at the end of its training: an image is missing" in caplog.text) is bool(calls)


def test_the_report_comes_before_runs_are_closed_and_comparisons_send_none(clip, processor, config, dataset):
    own = NeverTrackio()
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor, spuriosity=POOL, callbacks=[own])
    callbacks = trainer.callback_handler.callbacks
    assert [type(one) for one in callbacks].index(TrackerReport) < callbacks.index(own)
    compared = trainer_of(RunInputs(clip, config(), dataset, None, processor, POOL), config())
    assert not any(isinstance(one, TrackerReport) for one in compared.callback_handler.callbacks)


def test_a_tracker_that_is_not_there_is_named_before_anything_is_loaded(config, dataset, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", list)
    for name, match in {"wandb": "pip install wandb", "trakio": "Did you mean 'trackio'"}.items():
        with pytest.raises(ValueError, match=f"{name}.*{match}"):
            StarFTTrainer("nobody/nothing", config(report_to=name), dataset)
