"""`starft audit`, from folders of images to a page and an exit code."""

import json
import shutil

import pytest

from starft_hf import RobustnessReport, SpuriosityPool
from starft_hf.cli import main
from starft_hf.data.layouts.results import result_in
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, CLASS_NAMES, make_split
from starft_hf.hub.record import RunRecord, make_record
from tests.support.report_runs import run


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A split of the demo's images in folders, and others that fine-tuning never sees; templates as a file."""
    monkeypatch.chdir(tmp_path)
    for name, split, size in (("images", "test", 48), ("others", "held_out", 16)):
        for index, row in enumerate(make_split(split, size=size)):
            folder = tmp_path / name / CLASS_NAMES[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{index}.png")
    SpuriosityPool(BACKGROUND_TEMPLATES[:4]).save(tmp_path / "templates.json")
    (tmp_path / "words.txt").write_text("grass\nwater\n")
    return ["audit", str(MODEL_FOLDER), "images", "--spuriosity", "templates.json", "--cache_dir", "features"]


def test_a_broken_bound_ends_with_3_and_prints_what_was_found(world, tmp_path, capsys):
    arguments = [*world, "--base", str(MODEL_FOLDER), "--retention", "others", "--vocabulary", "words.txt"]
    assert main([*arguments, "--json", "--fail-under", "0"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["groups"]
    assert content["passed"]
    assert content["forgotten"]["answers_changed"] == 0
    assert set(content["forgotten"]["retention"]) == {"others"}
    assert len(content["sensitivity"]["attraction"]) == len(content["class_names"]) == 6
    assert content["correlates"]["words"] == 2
    assert 0 <= content["score"] < 1
    assert main([*world, "--vocabulary", "none", "--fail-under", "1", "--output", "out"]) == 3
    shown = capsys.readouterr().out
    assert "The score is below --fail_under 1." in shown
    assert (tmp_path / "out" / "audit.html").is_file()
    assert result_in([path.name for path in (tmp_path / "out").iterdir()]) is not None
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["score"] <= content["score"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--fail_under", "75"], "'75' is not a number from 0 to 1"),
        (["--fail_under", "low"], "'low' is not a number from 0 to 1"),
        (["--fail_under", "nan"], "'nan' is not a number from 0 to 1"),
        (["--vocabulary", "nowhere.txt"], "there is no such file"),
        (["--alpha", "2"], "alpha must be above 0"),
        (["--output", "images"], "not an empty folder"),
    ],
)
def test_wrong_use_ends_with_2_before_a_model_is_loaded(more, said, world, capsys, monkeypatch):
    monkeypatch.setattr("starft_hf.weights.repair.labeled.load_subject", lambda *_: pytest.fail("it was loaded"))
    try:
        code = main([*world, *more])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_report_shows_the_audit_of_a_run(world, tmp_path, capsys):
    RobustnessReport([run("zero-shot"), run("star")]).save(tmp_path / "robust")
    assert main([*world, "--vocabulary", "none", "--output", "robust/audit"]) == 0
    assert main(["report", "robust", "--output", "both"]) == 0
    page = (tmp_path / "both" / "report.html").read_text()
    content = json.loads((tmp_path / "robust" / "audit" / "audit.json").read_text())
    assert "<h2>Audits</h2>" in page
    assert f"Score {content['score']:.2f}" in page
    assert RobustnessReport.from_json((tmp_path / "both" / "report.json").read_text()).as_html() == page
    (tmp_path / "robust" / "audit" / "audit.json").write_text("{}")
    assert main(["report", "robust", "--output", "again"]) == 2
    assert "is not what `starft audit --output` wrote" in capsys.readouterr().err


def test_an_audit_in_the_folder_of_its_model_goes_into_the_record(world, tmp_path, capsys):
    shutil.copytree(MODEL_FOLDER, tmp_path / "own")
    make_record({}, None, None, start={"id": None}, reference={}, processes=1, class_names=None).save(tmp_path / "own")
    arguments = ["audit", "own", *world[2:], "--vocabulary", "none", "--saliency_maps", "1"]
    assert main([*arguments, "--output", "elsewhere"]) == 0
    assert RunRecord.load(tmp_path / "own").audit is None
    assert main([*arguments, "--output", "own/audit", "--saliency_maps", "0"]) == 0
    assert "have it too" in capsys.readouterr().out
    found = json.loads((tmp_path / "own" / "audit" / "audit.json").read_text())
    assert RunRecord.load(tmp_path / "own").audit["score"] == pytest.approx(found["score"], abs=1e-6)
    assert found["mistakes"] == []
    assert "data:image" in (tmp_path / "elsewhere" / "audit.html").read_text()
