"""The commands, from folders of images to reports, as a user types them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import CLIPModel

from starft_hf import RobustnessReport, evaluate_zero_shot, interpolate
from starft_hf.cli import main
from starft_hf.cli.arguments import settings_of, training_parser
from starft_hf.cli.train import _advice
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.training.methods import METHODS
from tests.support import report_runs
from tests.support.launch import torchrun
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset, write_folder, write_shards


FAST = ["--per_device_train_batch_size", "8", "--num_train_epochs", "1", "--use_cpu", "--learning_rate", "1e-3"]
NAMES = ("red fox", "blue_jay", "green fern", "grey owl")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for split, seed in (("train", 0), ("test", 1)):
        write_folder(folder, NAMES, seed=seed, split=split)
    return folder


def test_train_evaluates_before_and_after_and_saves_model_and_report(run, images, tmp_path):
    arguments = ["--model", TINY_CLIP, "--dataset", images, "--group_column", "place", *FAST]
    shown = run("train", *arguments, "--output_dir", "out", "--json")
    content = json.loads(shown)
    assert (content["method"], set(content["results"]), set(content["before"])) == ("star", {"test"}, {"test"})
    tuned = content["results"]["test"]
    assert set(tuned["group_accuracies"]) == {"left", "right"}
    report = RobustnessReport.from_json((tmp_path / "out" / "report.json").read_text())
    assert {run.method for run in report.runs} == {"zero-shot", "star"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "no image" not in page
    assert "| test |" in (tmp_path / "out" / "README.md").read_text()
    # What was saved is what was measured.
    again = json.loads(run("evaluate", "out", images, "--group-column", "place", "--json"))
    assert again["group_accuracies"] == tuned["group_accuracies"]
    assert "out is not an empty folder" in run("train", *arguments, "--output_dir", "out", code=2)
    # A model that was fine-tuned is not a zero-shot one.
    run("train", "--model", "out", "--dataset", images, *FAST, "--output_dir", "second")
    report = RobustnessReport.from_json((tmp_path / "second" / "report.json").read_text())
    assert ({run.method for run in report.runs}, report.baseline) == ({"before training", "star"}, "before training")
    # Another run of the same method and seed.
    run("train", *arguments, "--output_dir", "other", "--reg_weight", "3", "--json")
    rows = json.loads(run("report", "out", "other", "--output", "both", "--json"))["rows"]
    assert [row["method"] for row in rows] == ["zero-shot", "out", "other"]
    assert "no image" not in (tmp_path / "both" / "report.html").read_text()
    more = ["--output", "named", "--json", "--names"]
    rows = json.loads(run("report", "out", "other", *more, "weak", "strong"))["rows"]
    assert [row["method"] for row in rows] == ["zero-shot", "weak", "strong"]
    assert "--names has 1 names for 2 reports" in run("report", "out", "other", *more, "weak", code=2)


def test_what_was_chosen_is_said_before_training(images, tmp_path, capsys):
    arguments = ["--model", str(TINY_CLIP), "--dataset", str(images), *FAST, "--output_dir", str(tmp_path / "out")]
    assert main(["train", *arguments, "--max_steps", "1"]) == 0
    told = capsys.readouterr().err
    sentence = (
        "With 4 classes, the regularizer is 'star' at a weight of 67.5, and 25% of the spurious captions are plain"
    )
    assert 0 < told.index(sentence) < told.index("Training:")


@pytest.mark.parametrize(
    ("regularizer", "share", "log", "advice"),
    [
        ("star", 0, [{"plain_drift": 0.1}], "In a long run, --plain_caption_share 0.25 keeps"),
        ("star", 0, [{}], "starft tune, with the same"),
        ("kl", 0.25, [{"plain_drift": 0.1}], "starft tune, with the same"),
        (None, 0, [{}], "leave --regularizer at its default"),
    ],
)
def test_a_worst_group_that_fell_gets_advice(regularizer, share, log, advice):
    setup = SimpleNamespace(regularizer_name=regularizer, plan=SimpleNamespace(plain_share=share))
    trainer = SimpleNamespace(setup=setup, state=SimpleNamespace(log_history=log))
    (sentences,) = _advice(trainer, [report_runs.run("zero-shot", worst=0.7), report_runs.run("star", worst=0.6)])
    assert "The worst group of birds is worse than before training. " in sentences
    assert advice in sentences
    assert ("--plain_caption_share" in sentences) == ("--plain_caption_share" in advice)
    assert _advice(trainer, [report_runs.run("zero-shot", worst=0.6), report_runs.run("star", worst=0.595)]) == []
    assert _advice(trainer, []) == []


def test_people_get_a_table(run, images):
    arguments = ["--model", TINY_CLIP, "--dataset", images, "--group_column", "place", *FAST]
    shown = run("train", *arguments, "--output_dir", "out")
    assert "worst group" in shown
    assert "zero-shot" in shown
    shown = run("evaluate", TINY_CLIP, images, "--group-column", "place", "--split", "train")
    assert "left" in shown
    assert "expected calibration error" in shown


def test_a_file_of_settings_and_the_command_line_which_wins(run, images, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"model: {TINY_CLIP}\ndataset: {images}\noutput_dir: from-file\nregularizer: kl\nlearning_rate: 1e-3\n"
        "num_train_epochs: 1\nuse_cpu: true\ncrop_scale: null\ngroup_column: [label, place]\n"
        "caption_template: ['a photo of a {}.', 'a picture of a {}.']\n"
    )
    content = json.loads(run("train", "--config", "run.yaml", "--output_dir", "other", "--json"))
    assert content["output_dir"] == "other"
    assert "grey owl x left" in content["results"]["test"]["group_accuracies"]
    parser = training_parser("starft train", "")
    settings = settings_of(parser.parse_args(["--config", "run.yaml", "--reg_weight", "2"]))
    assert (settings.crop_scale, settings.learning_rate, settings.reg_weight) == (None, 1e-3, 2.0)
    assert settings.caption_templates == ["a photo of a {}.", "a picture of a {}."]


@pytest.mark.parametrize(
    ("content", "match"),
    [("reg_wieght: 1.0\n", "Did you mean 'reg_weight'"), ("- a\n- b\n", "no settings"), ("a: [\n", "cannot be read")],
)
def test_files_of_settings_that_are_wrong(content, match, run, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--config", str(tmp_path / "run.yaml")])
    assert stopped.value.code == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "--model is missing"),
        (["--model", "x", "--dataset", "y", "--reg_schedule", "linaer"], "Did you mean 'linear'"),
        (["--model", "x", "--dataset", "y", "--processes", "0"], "--processes is 0; it must be a positive integer"),
    ],
)
def test_wrong_use_ends_with_2_and_one_line(arguments, match, run):
    error = run("train", *arguments, code=2)
    assert match in error
    assert len(error.strip().splitlines()) == 1


def test_data_that_cannot_be_used(run, images, tmp_path):
    error = run("train", "--model", TINY_CLIP, "--dataset", images, "--image_column", "picture", *FAST, code=2)
    assert "no column 'picture'; its columns are ['image', 'place', 'label']" in error
    assert "unknown split 'dev'" in run("evaluate", TINY_CLIP, images, "--split", "dev", code=2)
    assert "there is no folder" in run("evaluate", TINY_CLIP, "./nothing", code=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.rtf").write_text("x")
    assert "no dataset could be read" in run("evaluate", TINY_CLIP, "./empty", code=2)
    assert "either a dataset or --benchmark" in run("evaluate", TINY_CLIP, code=2)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("nothing", "there is no folder 'nothing' here, and no such model could be loaded from the Hub"),
        ("empty", "'empty' is not a model: it has neither config.json nor adapter_config.json; pass a folder that"),
        ("model.pt", "'model.pt' is a file, and a model is a folder; pass"),
        ("weightless", "no model could be loaded from 'weightless'"),
    ],
)
def test_what_is_not_a_model_is_named_and_ends_with_2(model, match, run, images, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pt").write_bytes(b"x")
    (tmp_path / "weightless").mkdir()
    shutil.copy(TINY_CLIP / "config.json", tmp_path / "weightless")
    data = ["--dataset", images, "--output_dir", "out", *FAST]
    for command in (
        ["train", "--model", model, *data],
        ["train", "--model", TINY_CLIP, "--reference_model", model, *data],
        ["evaluate", model, images],
        ["predict", model, images, "-o", "out.csv", "--classes_from", images],
        ["discover", model, images],
        ["merge", model, "merged"],
        ["export", model, "--output_dir", "exported", "--class_names", "owl"],
    ):
        assert match in run(*command, code=2), command


def test_values_that_are_not_images_end_with_2(run):
    rows = Dataset.from_dict({"image": ["a.png"] * 4, "label": ["red fox", "blue jay"] * 2})
    DatasetDict(train=rows, test=rows).save_to_disk("saved")
    error = run("evaluate", TINY_CLIP, "saved", "--class_names", "red fox", "blue jay", code=2)
    assert "evaluate: error: row 0: an image is of type str; expected" in error


def test_a_folder_has_no_configurations(run, images):
    error = run("inspect", images, "--dataset_config", "x", code=2)
    assert "so there is no configuration 'x'; omit it" in error


def test_precompute_fills_the_cache_that_train_uses(run, images):
    arguments = [
        "--model",
        TINY_CLIP,
        "--dataset",
        images,
        "--no_random_crop",
        "--reference_cache_dir",
        "cache",
        *FAST,
    ]
    arguments += ["--reference_cache", "full"]
    first = json.loads(run("precompute", *arguments, "--json"))
    assert first["kind"] == "cached texts and images"
    assert first["forwards"] > 0
    assert first["captions_per_second"] > 0
    again = json.loads(run("precompute", *arguments, "--json"))
    assert (again["rows"], again["forwards"], again["captions_per_second"]) == (first["rows"], 0, None)
    assert "needs no reference" in run("precompute", *arguments, "--regularizer", "none", code=2)
    weighted = json.loads(run("precompute", *arguments, "--reweight", "attribution", "--json"))
    assert weighted["sample_weights"]["images"] == 16
    assert "sample weights: " in run("precompute", *arguments, "--regularizer", "none", "--reweight", "attribution")


def test_a_run_may_write_where_precompute_was_told_to(run, images, tmp_path):
    """A pool that is found was saved there, and training refused the folder."""
    arguments = ["--model", MODEL_FOLDER, "--dataset", images, "--spuriosity", "auto", "--output_dir", "run"]
    arguments += ["--reference_cache_dir", "cache", *FAST]
    assert json.loads(run("precompute", *arguments, "--json"))["forwards"] > 0
    assert not (tmp_path / "run").exists()
    run("train", *arguments)
    assert (tmp_path / "run" / "starft.json").is_file()


def test_compare_and_report(run, images, tmp_path):
    arguments = [
        "--model",
        TINY_CLIP,
        "--dataset",
        images,
        "--group_column",
        "place",
        *FAST,
        "--disable_tqdm",
        "true",
    ]
    for method in ("FLYP", "star"):
        more = ["--methods", "zero-shot", method, "--seeds", "0", "1", "--output_dir", method, "--json"]
        assert json.loads(run("compare", *arguments, *more))["report"] == f"{method}/report.html"
    rows = json.loads(run("report", "FLYP", "star", "--output", "for-machines", "--json"))["rows"]
    assert {row["method"] for row in rows} == {"zero-shot", "FLYP", "star"}
    shown = run("report", "FLYP", "star/report.json", "--output", "both", "--title", "Both")
    assert "FLYP + WiSE-FT 0.5" in shown
    report = RobustnessReport.from_json((tmp_path / "both" / "report.json").read_text())
    assert report.title == "Both"
    assert len(report.runs) == 1 + 2 * 2 * 2
    assert "there is no" in run("report", "nowhere", "--output", "x", code=2)


def test_compare_knows_every_method(run, images, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert all(method.replace(" ", "") in shown for method in METHODS)
    arguments = ["--model", TINY_CLIP, "--dataset", images, *FAST, "--reg_weight", "auto", "--output_dir", "beyond"]
    run("compare", *arguments, "--methods", "kl", "conditional + attribution")
    report = RobustnessReport.from_json(Path("beyond", "report.json").read_text())
    assert {entry.method for entry in report.runs} >= {"kl", "conditional + attribution"}


def test_interpolate_and_merge(run, images, tmp_path, clip):
    torch.manual_seed(1)
    other = CLIPModel(clip.config)
    other.save_pretrained(tmp_path / "other")
    run("interpolate", TINY_CLIP, "other", "mixed", "--alpha", "0.25")
    expected = interpolate(CLIPModel.from_pretrained(TINY_CLIP), other, 0.25).state_dict()
    for name, value in CLIPModel.from_pretrained(tmp_path / "mixed").state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert "alpha is 2.0" in run("interpolate", TINY_CLIP, "other", "more", "--alpha", "2", code=2)
    assert "not an empty folder" in run("merge", "other", "mixed", code=2)

    arguments = ["--model", TINY_CLIP, "--dataset", images, "--peft", "lora", *FAST, "--output_dir", "adapter"]
    measured = json.loads(run("train", *arguments, "--json"))["results"]["test"]
    assert json.loads(run("evaluate", "adapter", images, "--json"))["loss"] == pytest.approx(measured["loss"])
    assert json.loads(run("merge", "adapter", "merged", "--json")) == {"output": "merged"}
    assert json.loads(run("evaluate", "merged", images, "--json"))["loss"] == pytest.approx(measured["loss"], rel=1e-5)


def test_a_space_and_both_spellings_of_an_option(run):
    models = ["--model", f"tiny={TINY_CLIP}", "--class_names", *NAMES]
    assert json.loads(run("space", "page", *models, "--no_run", "--json")) == {"output": "page"}
    assert json.loads(run("space", "page", "--no-run", "--json")) == {"output": "page"}


def test_the_head_of_a_cross_entropy_run_is_used(run, images):
    arguments = ["--model", TINY_CLIP, "--dataset", images, "--base_loss", "cross_entropy", *FAST]
    measured = json.loads(run("train", *arguments, "--output_dir", "ce", "--json"))
    measured = measured["results"]["test"]
    with_head = json.loads(run("evaluate", "ce", images, "--json"))
    assert with_head["loss"] == pytest.approx(measured["loss"], rel=1e-5)
    without = json.loads(run("evaluate", "ce", images, "--json", "--no-head"))
    assert without["loss"] != pytest.approx(measured["loss"], rel=1e-5)


def test_benchmarks_of_the_catalog_by_name(run, monkeypatch, spelling_clip):
    rows = make_dataset(16, class_names=["landbird", "waterbird"], group_names=("land", "water"))
    rows = rows.rename_column("group", "place")
    monkeypatch.setattr("starft_hf.evaluation.catalog.entry.load_dataset", lambda *args, **kwargs: rows)
    with pytest.warns(UserWarning, match="16 rows"):
        content = json.loads(run("evaluate", spelling_clip, "--benchmark", "waterbirds", "--json"))
    assert "waterbird x land" in content["group_accuracies"]
    assert "Did you mean 'waterbirds'" in run("evaluate", TINY_CLIP, "--benchmark", "waterbird", code=2)


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "save_to_disk", "streaming", "hub"])
def test_training_data_of_every_kind(kind, run, images, tmp_path, monkeypatch):
    more = ["--max_steps", "2"]
    source = "data"
    if kind == "webdataset":
        write_shards(tmp_path / "data")
        more += ["--class_names", *CLASS_NAMES]
    elif kind == "save_to_disk":
        DatasetDict(train=make_dataset(16), test=make_dataset(16, 1)).save_to_disk(tmp_path / "data")
    elif kind == "parquet":
        for split, seed in (("train", 0), ("test", 1)):
            make_dataset(16, seed).to_parquet(tmp_path / "data" / f"{split}.parquet")
    elif kind == "streaming":
        source = images
        more += ["--streaming", "--group_column", "place"]
    else:
        source = "someone/owls"
        rows = DatasetDict(train=make_dataset(16), test=make_dataset(16, 1))
        monkeypatch.setattr("starft_hf.data.loading.load_dataset", lambda *args, **kwargs: rows)
    run_it = ["train", "--model", TINY_CLIP, "--dataset", source, *FAST, *more, "--output_dir", "out", "--json"]
    found = json.loads(run(*run_it))["results"]["test"]
    assert set(found["group_accuracies"]) == ({"left", "right"} if kind == "streaming" else set(CLASS_NAMES))


@pytest.mark.slow
def test_several_processes_train_what_one_does(images, tmp_path):
    arguments = ["--model", str(TINY_CLIP), "--dataset", str(images), "--json", "--no_random_crop", "--use_cpu"]
    arguments += ["--num_train_epochs", "1", "--learning_rate", "1e-3"]
    results = []
    for processes, size in ((1, 8), (2, 4)):
        command = [
            sys.executable,
            "-m",
            "starft_hf",
            "train",
            *arguments,
            "--output_dir",
            str(tmp_path / str(processes)),
        ]
        command += ["--processes", str(processes), "--per_device_train_batch_size", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        results.append(json.loads(done.stdout)["results"]["test"])
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4)
    one, two = (CLIPModel.from_pretrained(tmp_path / name) for name in "12")
    for name, value in one.state_dict().items():
        # Adam makes whole steps of gradients that are nothing but rounding.
        torch.testing.assert_close(two.state_dict()[name], value, rtol=0, atol=2e-4)
    assert evaluate_zero_shot(two, None, make_dataset(16, 1, NAMES), progress=False).accuracy >= 0


SCRIPT = """
import sys
from starft_hf.cli import main
from tests.support.launch import end_quietly

assert main(sys.argv[1:]) == 0
end_quietly()
"""


@pytest.mark.slow
def test_no_thread_is_left_that_could_take_a_process_down(images, tmp_path):
    """Where another process takes longer, one that ended well was ended by SIGABRT at times."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = ["--model", TINY_CLIP, "--dataset", images, "--output_dir", tmp_path / "out", *FAST]
    done = torchrun(2, script, "train", *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
