import json

import pytest

from starft_hf import RobustnessReport, SpuriosityPool
from starft_hf.data.layouts.results import result_in
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, CLASS_NAMES, make_split


TEMPLATES = ["{} in the snow.", "{} at night.", "{} on a road.", "{} behind a fence."]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def world(tmp_path):
    """The demo's images as a user would have them: one folder per class. The demo's templates as a file."""
    for split, size in (("train", 240), ("test", 48)):
        for index, row in enumerate(make_split(split, size=size)):
            folder = tmp_path / "images" / split / CLASS_NAMES[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{index}.png")
    SpuriosityPool(BACKGROUND_TEMPLATES).save(tmp_path / "templates.json")
    return tmp_path / "images"


def test_discover_finds_what_train_auto_takes(run, world, tmp_path):
    arguments = ["discover", MODEL_FOLDER, world, "--pool", "templates.json"]
    shown = run(*arguments, "--output", "found")
    assert "attributes are correlated with a label, in 240 images" in shown
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        "discovery.md",
        "heat_map.png",
        "examples.png",
        "pool.json",
    }
    assert result_in([path.name for path in (tmp_path / "found").iterdir()]) is not None
    content = json.loads(run(*arguments, "--json"))
    pool = SpuriosityPool.load(tmp_path / "found" / "pool.json")
    assert content["images"] == 240
    assert {row["attribute"] for row in content["found"]} <= {text.strip("{} .") for text in BACKGROUND_TEMPLATES}
    assert len(content["found"]) > 0
    assert "nothing is overwritten" in run(*arguments, "--output", "found", code=2)

    training = ["--model", MODEL_FOLDER, "--dataset", world, "--max_steps", "2", "--disable_tqdm", "true", "--json"]
    training += ["--spuriosity", "auto", "--discovery_pool", "templates.json", "--discovery_samples", "240"]
    run("train", *training, "--output_dir", "out")
    assert SpuriosityPool.load(tmp_path / "out").templates == pool.templates
    assert (tmp_path / "out" / "report.html").is_file()
    report = RobustnessReport.from_json((tmp_path / "out" / "report.json").read_text())
    assert {run.method for run in report.runs} == {"zero-shot", "star"}


def test_discover_without_findings_announces_no_pool(run, world, tmp_path):
    shown = run(
        "discover", MODEL_FOLDER, world, "--pool", "templates.json", "--max_samples", "12", "--output", "found"
    )
    assert "Table and images (without findings there is no pool): found" in shown
    assert not (tmp_path / "found" / "pool.json").exists()


def test_generate_pool_writes_what_train_takes(run, endpoint, tmp_path):
    arguments = ["generate-pool", "--domain", "pets", "--class-names", "cat", "dog", "-n", "4", "--aspects", "places"]
    (tmp_path / "key").write_text("secret\n")
    endpoint.answers = [json.dumps(TEMPLATES)]
    asking = ["--base-url", endpoint.url, "--llm", "some/model", "--api-key-file", "key"]
    shown = run(*arguments, *asking, "--output", "pool.json")
    headers = {name.lower(): value for name, value in endpoint.requests[0][1].items()}
    assert headers["authorization"] == "Bearer secret"
    again = json.loads(run(*arguments, *asking, "--output", "again.json", "--json"))
    assert len(endpoint.requests) == 1
    assert "4 templates: pool.json" in shown
    pool = SpuriosityPool.load(tmp_path / "pool.json")
    assert list(pool) == TEMPLATES == again["templates"]
    assert "secret" not in (tmp_path / "pool.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "pass --llm, --base_url or both"),
        (["--llm", "a", "--base-url", "http://x", "--provider", "auto"], "pass one of --base_url and --provider"),
        (["--llm", "a", "--output", "there.json"], "there.json exists"),
    ],
)
def test_wrong_use_of_generate_pool(run, tmp_path, arguments, said):
    (tmp_path / "there.json").write_text("mine")
    start = ["generate-pool", "--domain", "pets", "--class-names", "cat", "dog", "--output", "pool.json"]
    assert said in run(*start, *arguments, code=2)
    assert (tmp_path / "there.json").read_text() == "mine"
