"""Training on the benchmarks of the catalog, from folders and without the Hub."""

import json

import pytest

from starft_hf.cli.arguments import check_required, settings_of
from starft_hf.cli.data import load_training_data
from starft_hf.cli.main import make_parser
from starft_hf.evaluation.catalog import entry as entry_module
from tests.support.layouts import write_celeba, write_images, write_iwildcam, write_waterbirds
from tests.support.tiny import TINY_CLIP


pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be compared")
FAST = ["--per_device_train_batch_size", "8", "--max_steps", "1", "--use_cpu", "--save_strategy", "no"]
GROUPS = {"landbird x land", "landbird x water", "waterbird x land", "waterbird x water"}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(entry_module, "load_dataset", lambda *args, **kwargs: pytest.fail("downloads"))


def options_of(*arguments):
    options = make_parser("train").parse_args(["--model", str(TINY_CLIP), *map(str, arguments)])
    options.command_line = ["train"]
    check_required(options)
    return options


def test_waterbirds(run, tmp_path, spelling_clip):
    write_waterbirds(tmp_path / "data" / "waterbirds_v1.0")
    birds = ["--benchmark", "waterbirds", "--data_dir", "data"]
    train = ["train", "--model", spelling_clip, *birds, *FAST, "--regularizer", "kl", "--json"]
    content = json.loads(run(*train, "--output_dir", "out"))
    (tuned,) = content["results"].values()
    assert list(content["results"]) == ["test"]
    assert set(tuned["group_accuracies"]) == GROUPS
    again = json.loads(run("evaluate", "out", *birds, "--json"))
    assert again["group_accuracies"] == tuned["group_accuracies"]
    assert again["loss"] == pytest.approx(tuned["loss"], rel=1e-5)
    assert (again["benchmark"], again["split"]) == ("waterbirds", "test")
    validation = json.loads(run("evaluate", "out", *birds, "--split", "validation", "--json"))
    assert sum(validation["group_sizes"].values()) == 4
    best = ["--load_best_model_at_end", "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    train.remove("no"), train.remove("--save_strategy")
    error = run(*train, *best, "--output_dir", "best", code=2)
    assert "--eval_split validation test" in error


def test_what_a_benchmark_decides(tmp_path):
    write_celeba(tmp_path)
    celeba = ["--benchmark", "celeba", "--data_dir", tmp_path]
    options = options_of(*celeba, "--eval_split", "validation", "test")
    data = load_training_data(options)
    settings = settings_of(options)
    assert (len(data.train), {name: len(rows) for name, rows in data.evaluation.items()}) == (
        3,
        {"validation": 2, "test": 2},
    )
    assert data.train.features["label"].names == ["dark", "blond"]
    assert data.train.features == data.evaluation["test"].features
    assert settings.group_column == ["label", "sex"]
    assert settings.caption_templates == ["A photo of a celebrity with {} hair."]
    assert settings.zero_shot_templates == ["A photo of a celebrity with {} hair."]
    options = options_of(
        *celeba, "--caption_template", "{} hair.", "--eval_templates", "hair: {}", "--group_column", "sex"
    )
    load_training_data(options)
    settings = settings_of(options)
    assert (settings.caption_templates, settings.zero_shot_templates) == (["{} hair."], ["hair: {}"])
    assert settings.group_column == ["sex"]


def test_other_class_names(tmp_path):
    write_iwildcam(tmp_path)
    names = ["--class_names", "nothing", "an owl", "an owl"]
    options = options_of("--benchmark", "iwildcam", "--data_dir", tmp_path, *names)
    data = load_training_data(options)
    # Some of the published names occur twice.
    assert data.train.features["label"].names == ["nothing", "an owl", "an owl_"]
    assert settings_of(options).class_names is None
    assert settings_of(options).zero_shot_templates == ["a photo of {}.", "{} in the wild."]
    assert set(data.found.splits) == {"train", "validation", "test", "id_val", "id_test"}
    assert list(data.evaluation) == ["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "waterbirds", "--dataset", "d"], "pass either --dataset or --benchmark"),
        (["--dataset", "owner/d", "--data_dir", "d"], "--data_dir has no effect: it is the folder of a benchmark"),
        (["--benchmark", "waterbirds", "--label_column", "y"], "--label_column has no effect: --benchmark waterbirds"),
        (["--benchmark", "waterbirds", "--streaming"], "--streaming has no effect: --benchmark waterbirds decides"),
        (["--benchmark", "waterbird"], "Did you mean 'waterbirds'"),
        (
            ["--benchmark", "waterbirds", "--data_dir", "nowhere"],
            "there is no folder 'nowhere'; pass one with metadata",
        ),
        (["--benchmark", "waterbirds", "--data_dir", "photos"], "'waterbirds' cannot be read from 'photos': expected"),
        (["--benchmark", "fmow"], "fmow has no training split on the Hub; pass its folder with --data_dir"),
        (["--benchmark", "pacs", "--data_dir", "pacs"], "--benchmark pacs has no training split in pacs"),
        (["--benchmark", "cifar10.02", "--data_dir", "photos"], "'cifar10.02' is distributed as arrays"),
    ],
)
def test_wrong_use(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("starft_hf.models.loading.AutoModel", None)
    write_images(tmp_path, "photos/owl/1.jpg", "pacs/photo/dog/1.jpg")
    for command in ("train", "compare", "precompute"):
        assert message in run(command, "--model", TINY_CLIP, *arguments, *FAST, code=2)
    evaluated = ["evaluate", TINY_CLIP, "photos", "--data_dir", "d"]
    assert "--data_dir has no effect: it is the folder of a benchmark" in run(*evaluated, code=2)


def test_the_same_settings_in_a_file(run, tmp_path, spelling_clip):
    write_waterbirds(tmp_path / "birds")
    lines = [f"model: {spelling_clip}", "benchmark: waterbirds", "data_dir: birds", "output_dir: cached"]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "regularizer: kl", "use_cpu: true"]))
    assert json.loads(run("precompute", "--config", "run.yaml", "--no_random_crop", "--json"))
