"""The Space: written, and used in a browser as a visitor would."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTTrainer, load
from starft_hf.cli import main
from starft_hf.data.layouts.results import result_in
from starft_hf.hub.space import SpaceSettings, load_classifiers, write_space
from tests.support.space import running_space
from tests.support.tiny import TINY_CLIP, make_dataset


NAMES = ["owl", "truck", "violin", "fern"]


def models():
    return {name: str(TINY_CLIP) for name in ("zero-shot", "fine-tuned", "StarFT")}


def test_a_space_is_written_once_and_whole(tmp_path):
    (tmp_path / "report.html").write_text("<p>All owls</p>")
    settings = SpaceSettings(models(), NAMES, title='Owls 🦉: "robust"')
    folder = write_space(tmp_path / "space", settings, tmp_path / "report.html")
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["README.md", "app.py", "models", "report.html", "requirements.txt", "space.json"]
    assert result_in(written) is not None
    places = {name: f"models/{name}" for name in models()}
    assert SpaceSettings.load(folder) == replace(settings, models=places)
    assert 'title: "Owls 🦉: \\"robust\\""' in (folder / "README.md").read_text("utf-8")
    with pytest.raises(FileExistsError, match="would be overwritten"):
        write_space(folder, settings)
    with pytest.raises(FileNotFoundError, match="no image"):
        write_space(tmp_path / "other", settings, examples=["nowhere.png"])
    with pytest.raises(FileNotFoundError, match="no report"):
        write_space(tmp_path / "other", settings, "nowhere.html")
    assert not (tmp_path / "other").exists()


def test_all_models_tell_the_same_classes_apart(tmp_path):
    image = make_dataset()[0]["image"]
    for classifier in load_classifiers(SpaceSettings(models(), NAMES)).values():
        assert set(classifier(image)[0].scores) == set(NAMES)
    with pytest.raises(ValueError, match="no model has class names"):
        load_classifiers(SpaceSettings(models()))
    with pytest.raises(ValueError, match="models is empty"):
        SpaceSettings({})
    (tmp_path / "space.json").write_text(json.dumps({"modells": {}}))
    with pytest.raises(ValueError, match="cannot be read"):
        SpaceSettings.load(tmp_path)


def test_the_command_writes_one_and_says_what_is_missing(tmp_path, capsys):
    arguments = ["space", str(tmp_path / "space"), "--no-run"]
    assert main(arguments) == 2
    assert "name models with --model" in capsys.readouterr().err
    assert main([*arguments, "--model", "StarFT"]) == 2
    assert main([*arguments, "--model", f"StarFT={TINY_CLIP}", "--class-names", *NAMES]) == 0
    assert SpaceSettings.load(tmp_path / "space").models == {"StarFT": "models/StarFT"}
    assert main(arguments) == 0


@pytest.mark.parametrize("kind", ["full", "head", "adapter"])
def test_a_space_works_wherever_it_is_moved_and_names_no_place(kind, config, tmp_path):
    """Nothing is left of the models that it was written with."""
    here = tmp_path / "here"
    shutil.copytree(TINY_CLIP, here / "base")
    args = config(
        output_dir=str(here / "run"), max_steps=1, base_loss="cross_entropy" if kind == "head" else "contrastive"
    )
    peft = "lora" if kind == "adapter" else None
    trainer = StarFTTrainer(str(here / "base"), args, make_dataset(), make_dataset(), peft_config=peft)
    trainer.train()
    trainer.save_model()
    image = make_dataset()[0]["image"]
    expected = load(here / "run")(image)[0].scores
    space = here / "space"
    write_space(
        space, SpaceSettings({"Star FT!": str(here / "run"), "Star-FT": str(here / "base"), "hub": "you/owls"}, NAMES)
    )
    assert SpaceSettings.load(space).models == {
        "Star FT!": "models/Star-FT",
        "Star-FT": "models/Star-FT-1",
        "hub": "you/owls",
    }
    files = [path for path in space.rglob("*") if path.is_file()]
    assert [path.name for path in files if str(tmp_path).encode() in path.read_bytes()] == []
    assert not [path.name for path in files if "training_args" in path.name]
    shutil.move(space, tmp_path / "there")
    shutil.rmtree(here)
    settings = SpaceSettings.load(tmp_path / "there")
    settings = replace(settings, models={name: place for name, place in settings.models.items() if name != "hub"})
    found = load_classifiers(settings, tmp_path / "there")
    assert found["Star FT!"](image)[0].scores == pytest.approx(expected)


@pytest.mark.parametrize("model", ["./nowhere", "/data/nowhere", "a/b/c", "C:\\nowhere"])
def test_models_that_are_nowhere_are_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(ValueError, match="pass a folder or the id of a Hub repository"):
        write_space(tmp_path / "space", SpaceSettings({"StarFT": model}))
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"is not a model: it has neither config\.json nor adapter_config\.json"):
        write_space(tmp_path / "space", SpaceSettings({"StarFT": str(tmp_path / "photos")}))
    assert not (tmp_path / "space").exists()


@pytest.fixture
def different(tmp_path):
    """Three models that do not agree on the first image."""
    for seed, name in enumerate(models()):
        torch.manual_seed(seed)
        model = CLIPModel.from_pretrained(TINY_CLIP)
        for parameter in model.vision_model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / name)
        AutoProcessor.from_pretrained(TINY_CLIP).save_pretrained(tmp_path / name)
    return SpaceSettings({name: str(tmp_path / name) for name in models()}, NAMES)


@pytest.fixture
def running(tmp_path, different):
    (tmp_path / "report.html").write_text("<!DOCTYPE html><html><body><h1>All owls</h1></body></html>")
    make_dataset(seed=3)[0]["image"].save(tmp_path / "my private name.png")
    write_space(tmp_path / "space", different, tmp_path / "report.html", [tmp_path / "my private name.png"])
    assert [path.name for path in (tmp_path / "space" / "examples").iterdir()] == ["0.png"]
    with running_space(tmp_path / "space", tmp_path / "log") as address:
        yield address


@pytest.mark.browser
def test_an_image_in_and_three_columns_of_predictions_out(running, different, tmp_path, browser):
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    image = make_dataset(image_size=64)[0]["image"]
    image.save(tmp_path / "owl.png")
    expected = [classifier(image)[0].label for classifier in load_classifiers(different).values()]
    assert len(set(expected)) > 1
    page.goto(running)
    page.set_input_files("input[type=file]", str(tmp_path / "owl.png"))
    labels = page.locator(".answer")
    labels.nth(2).wait_for(timeout=60_000)
    assert [text.strip() for text in labels.all_inner_texts()] == expected
    text = page.inner_text("body")
    assert all(name in text for name in models())
    assert "The models differ." in text
    scores = load_classifiers(different)["StarFT"](image)[0].scores
    assert f"{100 * max(scores.values()):.1f}%" in text
    page.get_by_role("tab", name="Report").click()
    page.frame_locator("iframe[title=Report]").get_by_role("heading", name="All owls").wait_for(timeout=20_000)
