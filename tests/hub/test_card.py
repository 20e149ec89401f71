"""The card and the record: what they say, what they keep to themselves, and what they leave alone."""

import copy
import getpass
import json
import logging
import math
import shlex
import shutil
import socket

import pytest
from huggingface_hub import ModelCard

from starft_hf import SpuriosityPool, StarFTConfig, StarFTTrainer, load
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.hub.card_edits import BEGIN, END, keep_published_edits, update_card
from starft_hf.hub.model_card import CardContent, default_template, render_card
from starft_hf.hub.pushing import advice
from starft_hf.hub.record import RunRecord
from starft_hf.utils.hashing import tensors_digest
from starft_hf.utils.plotting import SERIES
from tests.support.figures import pixels_of
from tests.support.hub_server import card_errors
from tests.support.tiny import TINY_CLIP, make_dataset


@pytest.fixture
def train(config, dataset, processor):
    def train(folder, model=TINY_CLIP, peft_config=None, pool=("{} in the snow.", "{} at night."), **settings):
        args = config(output_dir=str(folder), max_steps=2, group_column="group", eval_on_start=True, **settings)
        evaluation = {"plain": dataset, "shifted": make_dataset(seed=7)}
        trainer = StarFTTrainer(str(model), args, dataset, evaluation, spuriosity=pool, peft_config=peft_config)
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
        return trainer

    return train


def card_of(folder):
    card = ModelCard.load(folder / "README.md")
    assert card_errors(str(card)) == []
    return card


def test_the_card_has_every_evaluation_against_zero_shot(train, tmp_path):
    trainer = train(tmp_path / "owls", learning_rate=1e-2)
    trainer.create_model_card(tags="birds", license="mit", dataset="someone/owls")
    card = card_of(tmp_path / "owls")
    assert card.data.license == "mit"
    assert card.data.datasets == ["someone/owls"]
    assert {"starft", "birds"} <= set(card.data.tags)
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    for name, result in trainer.evaluation_results.items():
        assert found[name, "accuracy"] == pytest.approx(result.accuracy, abs=1e-6)
        assert found[name, "worst_group_accuracy"] == pytest.approx(result.worst_group_accuracy, abs=1e-6)
        assert found[name, "expected_calibration_error"] == pytest.approx(result.ece, abs=1e-6)
        change = result.worst_group_accuracy - trainer.zero_shot_results[name].worst_group_accuracy
        assert found[name, "worst_group_accuracy_change"] == pytest.approx(change, abs=1e-6)
        assert f"| {name} | {100 * result.accuracy:.1f} |" in card.text
    for number in (0, 1):
        for kind in ("overview", "groups"):
            assert f"(figures/{kind}-{number}.png)" in card.text
            found = pixels_of((tmp_path / "owls" / "figures" / f"{kind}-{number}.png").read_bytes())
            assert min(found[color] for color in SERIES[:2]) > 100
    assert "{} in the snow." in card.text
    assert "fine-tuned on 24 images to classify" in card.text
    left = trainer.evaluation_results["plain"].group_accuracies["left"]
    assert f"| left | {trainer.evaluation_results['plain'].group_sizes['left']} | {100 * left:.1f} |" in card.text
    changed, usual = card.text.split("Settings with default values")
    assert "| learning_rate | 0.01 |" in changed
    assert "| weight_decay | 0.1 |" in usual
    assert "| step | base loss |" in usual
    assert "kim2025starft" in card.text


@pytest.mark.parametrize(
    ("settings", "evaluations", "pushes"),
    [
        ({}, 1, 1),
        ({"eval_strategy": "steps", "eval_steps": 1}, 2, 1),
        ({"hub_strategy": "end"}, 0, 0),
    ],
)
def test_training_ends_with_one_evaluation_of_what_it_pushes(
    clip, processor, config, dataset, monkeypatch, settings, evaluations, pushes
):
    done = []
    evaluate = StarFTTrainer.evaluate
    monkeypatch.setattr(StarFTTrainer, "evaluate", lambda *a, **k: done.append("evaluation") or evaluate(*a, **k))
    monkeypatch.setattr(StarFTTrainer, "push_to_hub", lambda self: done.append("push"))
    monkeypatch.setattr(StarFTTrainer, "init_hf_repo", lambda self: None)
    args = config(max_steps=2, push_to_hub=True, save_strategy="no", **settings)
    trainer = StarFTTrainer(clip, args, dataset, dataset, processing_class=processor)
    for _ in range(2):
        # A second training has to be evaluated like the first.
        trainer.train()
        assert done == ["evaluation"] * evaluations + ["push"] * pushes
        done.clear()


def test_nothing_names_the_machine_or_the_person(train, tmp_path, monkeypatch):
    """Planted everywhere that settings, models and datasets could carry it."""
    monkeypatch.setenv("HF_TOKEN", "hf_planted_environment")
    model = tmp_path / "someones" / "base"
    shutil.copytree(TINY_CLIP, model)
    pool = tmp_path / "someones" / "pool.json"
    source = f"written by {tmp_path}/someones/model, from ~someones/notes and C:\\Users\\someones\\pool.json"
    SpuriosityPool(["{} in the snow."], name=str(pool), source=source, description=f"Of {pool}.").save(pool)
    settings = {
        "hub_token": "hf_planted_setting",
        "hub_model_id": "lab/owls",
        "reference_cache_dir": str(tmp_path / "someones"),
        "logging_dir": str(tmp_path / "someones"),
        "card_template": str(tmp_path / "someones" / "card.md"),
        "discovery_pool": str(pool),
        "project": "someones",
    }
    settings = {name: value for name, value in settings.items() if name in StarFTConfig.__dataclass_fields__}
    shutil.copy(default_template(), tmp_path / "someones" / "card.md")
    images = make_dataset()
    images.save_to_disk(tmp_path / "someones" / "images")
    kinds = {"full": (None, str(pool)), "adapter": ("lora", str(pool)), "auto": (None, "auto")}
    for kind, (peft_config, spuriosity) in kinds.items():
        trainer = train(
            tmp_path / kind, model, peft_config, spuriosity, run_name=str(tmp_path), save_strategy="epoch", **settings
        )
        for results in (trainer.evaluation_results, trainer.zero_shot_results, trainer.evaluated_columns):
            results[str(tmp_path / "someones" / "val")] = results.pop("shifted")
        trainer.create_model_card()
        card_of(tmp_path / kind)
        files = [path for path in (tmp_path / kind).iterdir() if path.suffix in (".json", ".md")]
        # An adapter needs its base model here; that is left out where it is published.
        files = [path for path in files if path.name != "adapter_config.json"]
        assert any(path.name == "starft_pool.json" for path in files) == (kind == "auto")
        written = "".join(path.read_text() for path in files)
        for secret in (
            "hf_planted",
            "someones",
            str(tmp_path),
            socket.gethostname(),
            f"/{getpass.getuser()}",
            "/home/",
        ):
            assert secret not in written, secret


def test_the_record_repeats_the_run(train, dataset, tmp_path):
    first = train(tmp_path / "first", learning_rate=1e-2, reg_weight=3.0, regularizer="kl", crop_scale=None)
    args = StarFTConfig.from_pretrained(
        tmp_path / "first", output_dir=str(tmp_path / "again"), report_to="none", use_cpu=True
    )
    record = RunRecord.load(tmp_path / "first")
    assert record == first.record
    assert record.class_names == first.class_names
    assert record.data["rows"] == len(dataset)
    pool = SpuriosityPool.load(tmp_path / "first")
    again = StarFTTrainer(str(TINY_CLIP), args, dataset, spuriosity=pool)
    again.train()
    assert again.record.reference["fingerprint"] == record.reference["fingerprint"]
    weights = first.model.state_dict()
    assert all(value.equal(weights[name]) for name, value in again.model.state_dict().items())


def test_a_run_without_a_pool_has_none_to_load(train, tmp_path):
    train(tmp_path / "plain", regularizer="none")
    with pytest.raises(ValueError, match="had no spuriosity pool"):
        SpuriosityPool.load(tmp_path / "plain")


def test_what_a_person_has_written_stays(train, tmp_path, caplog):
    trainer = train(tmp_path / "run")
    trainer.create_model_card()
    path = tmp_path / "run" / "README.md"
    text = path.read_text().replace("pipeline_tag:", "thumbnail: owl.png\npipeline_tag:", 1)
    text = text.replace("---\n<!--", "---\nBefore.\n\n<!--", 1) + "\nAfter.\n"
    path.write_text(text)
    trainer.evaluation_results.pop("shifted")
    trainer.create_model_card(tags=["later"])
    card = card_of(tmp_path / "run")
    assert card.text.lstrip().startswith("Before.")
    assert card.text.rstrip().endswith("After.")
    assert card.data.get("thumbnail") == "owl.png"
    assert "later" in card.data.tags
    assert "| shifted |" not in card.text
    # Inside of the generated part as well.
    path.write_text(path.read_text().replace("## Intended use and limits", "## Limits, as we see them"))
    logging.getLogger("starft_hf").addHandler(caplog.handler)
    trainer.create_model_card(tags=["last"])
    logging.getLogger("starft_hf").removeHandler(caplog.handler)
    card = card_of(tmp_path / "run")
    assert "## Limits, as we see them" in card.text
    assert "last" in card.data.tags
    assert "edited by hand" in caplog.text


def test_a_card_of_ones_own_is_kept_and_one_of_peft_is_replaced(train, tmp_path):
    trainer = train(tmp_path / "own")
    (tmp_path / "own" / "README.md").write_text("---\nlicense: mit\n---\n# Our owls\n")
    trainer.create_model_card()
    card = card_of(tmp_path / "own")
    assert card.text.lstrip().startswith("# Our owls")
    assert "## How to use" in card.text
    assert card.data.license == "mit"

    trainer = train(tmp_path / "adapter", peft_config="lora")
    assert "Model Card for Model ID" in (tmp_path / "adapter" / "README.md").read_text()
    for _ in range(2):
        trainer.create_model_card()
        card = card_of(tmp_path / "adapter")
        assert "Model Card for Model ID" not in card.text
        assert card.text.count("- PEFT ") == 1
        # PEFT looks at the card again whenever the adapter is saved.
        trainer.save_model()
    trainer.merge_and_save(tmp_path / "merged")
    assert card_of(tmp_path / "merged").data.library_name == "transformers"


@pytest.mark.parametrize("folder", ["", "~"])
def test_a_template_of_ones_own(train, tmp_path, config, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    template = tmp_path / "card.md"
    template.write_text("---\n{{ card_data }}\n---\n{{ begin }}\nOwls by {{ config.learning_rate }}.\n{{ end }}\n")
    trainer = train(tmp_path / "run", card_template=f"{folder or tmp_path}/card.md", learning_rate=1e-3)
    trainer.create_model_card()
    assert "Owls by 0.001." in card_of(tmp_path / "run").text
    with pytest.raises(ValueError, match="no such file"):
        config(card_template="nowhere.md")


@pytest.mark.parametrize("front", ["", "---\n{{ card_data }}\n---\n"])
def test_a_template_without_marks_is_written_once_however_often(train, tmp_path, front, config):
    template = tmp_path / "card.md"
    template.write_text(front + "Owls by {{ config.learning_rate }}.\n")
    trainer = train(tmp_path / "run", card_template=str(template), learning_rate=1e-3)
    for _ in range(3):
        trainer.create_model_card()
    card = card_of(tmp_path / "run")
    assert card.text.count("Owls by 0.001.") == 1
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    template.write_text("{{ begin }}\nOwls.\n")
    with pytest.raises(ValueError, match="needs both or neither"):
        trainer.create_model_card()


def test_metadata_that_cannot_be_read_raise_and_are_kept(train, tmp_path):
    trainer = train(tmp_path / "run")
    broken = "---\nlicense: [mit\n---\n# Our owls\n"
    (tmp_path / "run" / "README.md").write_text(broken)
    with pytest.raises(ValueError, match="correct or remove them"):
        trainer.create_model_card()
    assert (tmp_path / "run" / "README.md").read_text() == broken


def test_what_is_stated_goes_before_what_was_edited(train, tmp_path):
    trainer = train(tmp_path / "run")
    trainer.create_model_card(license="mit")
    trainer.create_model_card()
    assert card_of(tmp_path / "run").data.license == "mit"
    path = tmp_path / "run" / "README.md"
    path.write_text(path.read_text().replace("license: mit", "license: other"))
    trainer.create_model_card()
    assert card_of(tmp_path / "run").data.license == "other"
    trainer.create_model_card(license="apache-2.0")
    assert card_of(tmp_path / "run").data.license == "apache-2.0"


def test_a_new_folder_keeps_the_published_text_and_what_is_stated(tmp_path, caplog):
    def write(name, license, stated=()):
        (tmp_path / name).mkdir(exist_ok=True)
        card = ModelCard(f"---\nlicense: {license}\npipeline_tag: clip\n---\n{BEGIN}\nOf {name}.\n{END}\n")
        update_card(tmp_path / name, card, stated)
        return tmp_path / name / "README.md"

    first = write("first", "mit")
    first.write_text(first.read_text().replace("---\n<!--", "---\nOurs.\n\n<!--").replace("clip", "vision"))
    keep_published_edits(tmp_path / "first", None)
    for stated, license in (((), "mit"), (["license"], "other")):
        second = write("second", "other", stated)
        keep_published_edits(tmp_path / "second", first.read_text())
        card = ModelCard(second.read_text())
        assert ("Ours." in card.text, "Of second." in card.text) == (True, True)
        assert card.data.license == license
        assert stated or card.data.pipeline_tag == "vision"
        second.unlink()
    # Text of both is not merged.
    second = write("second", "other")
    second.write_text(f"{second.read_text()}\nTheirs.\n")
    logging.getLogger("starft_hf").addHandler(caplog.handler)
    keep_published_edits(tmp_path / "second", first.read_text())
    logging.getLogger("starft_hf").removeHandler(caplog.handler)
    assert ("Theirs." in second.read_text(), "Ours." in second.read_text()) == (True, False)
    assert "in the history of the repository" in caplog.text


def test_another_reference_is_recorded_as_what_it_is(config, dataset, clip, tmp_path):
    reference = copy.deepcopy(clip)
    reference.logit_scale.data += 1
    trainer = StarFTTrainer(
        str(TINY_CLIP), config(output_dir=str(tmp_path / "run"), max_steps=1), dataset, reference_model=reference
    )
    expected = tensors_digest(reference.state_dict())
    trainer.train()
    assert trainer.record.reference["fingerprint"] == expected
    assert trainer.record.start["fingerprint"] == tensors_digest(clip.state_dict())


def test_where_the_training_data_is_from(config, dataset, tmp_path):
    dataset.info.download_checksums = {
        "hf://datasets/someone/owls@0a1b2c/data/train.parquet": {},
        "hf://datasets/someone/owls@0a1b2c/data/more.parquet": {},
        "https://example.org/owls.zip": {},
    }
    trainer = StarFTTrainer(str(TINY_CLIP), config(output_dir=str(tmp_path / "run")), dataset)
    trainer.create_model_card()
    assert card_of(tmp_path / "run").data.datasets == ["someone/owls"]


def test_names_that_would_break_the_card(config, tmp_path, spelling_clip):
    names = ["a|b", "<script>alert(1)</script>", "```", "{{ 7777 * 7777 }}"]
    rows = make_dataset(class_names=names)
    args = config(output_dir=str(tmp_path / "run"), max_steps=1)
    trainer = StarFTTrainer(
        str(spelling_clip), args, rows, {"x | y": rows}, spuriosity=["{} `in` the snow.\n\n<script>alert(2)</script>"]
    )
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    text = card_of(tmp_path / "run").text
    # In code, and on a line of its own.
    text = text.replace("- `{} 'in' the snow. <script>alert(2)</script>`\n", "")
    assert "<script>" not in text.replace("'<script>alert(1)</script>'", "")
    assert str(7777 * 7777) not in text
    assert "x \\| y" in text


def test_a_failed_push_is_repeated_to_the_same_place():
    message = advice("my runs/owls", "lab/owls", private=True, revision="v 2", tag="first")
    command = message.split("publish it with: ")[1]
    assert shlex.split(command) == [
        *("starft", "push", "my runs/owls", "--repo-id", "lab/owls"),
        *("--private", "--revision", "v 2", "--tag", "first"),
    ]
    assert "--private" not in advice("owls", "lab/owls")


def test_the_template_stands_at_the_root():
    assert default_template().name == "model_card_template.md"
    assert default_template().parent.joinpath("pyproject.toml").is_file()


def test_load_classifies_with_what_was_saved(train, dataset, tmp_path):
    trainer = train(tmp_path / "run", learning_rate=1e-2, eval_templates=["an {}.", "a photo of a {}."])
    classifier = load(tmp_path / "run")
    predictions = classifier(list(dataset["image"]), batch_size=7)
    right = [
        prediction.label == trainer.class_names[row["label"]]
        for prediction, row in zip(predictions, dataset, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(trainer.evaluation_results["plain"].accuracy)
    assert all(sum(prediction.scores.values()) == pytest.approx(1) for prediction in predictions)
    assert all(prediction.score == max(prediction.scores.values()) for prediction in predictions)
    others = classifier.with_classes(["sky", "snow"])(dataset[0]["image"])
    assert set(others[0].scores) == {"sky", "snow"}
    with pytest.raises(ValueError, match="no classes are known"):
        load(TINY_CLIP)(dataset[0]["image"])
    with pytest.raises(TypeError, match="of type dict"):
        classifier({"image": "cat.png"})
    config = json.loads((tmp_path / "run" / "starft.json").read_text())
    assert config["config"]["eval_templates"] == ["an {}.", "a photo of a {}."]


def test_a_relative_path_that_was_left_is_no_id_of_the_hub(config, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY_CLIP, tmp_path / "models" / "clip")
    trainer = StarFTTrainer("models/clip", config(output_dir=str(tmp_path / "run"), max_steps=1), dataset)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trainer.train()
    trainer.create_model_card()
    assert trainer.record.start["id"] is None
    assert "models/clip" not in (tmp_path / "run" / "README.md").read_text()


def test_a_metric_that_is_not_finite_is_not_in_the_metadata():
    source = dict.fromkeys(("id", "revision", "fingerprint"))
    record = RunRecord({}, None, ("owl", "fern"), source, {}, {"rows": 10}, 1, {})
    sizes = {"left": 10_000, "right": 10_000}
    diverged = EvaluationResult(0.9996, 0.9996, {"left": 0.9996, "right": 1.0}, sizes, math.nan, math.nan)
    card = render_card(CardContent("run", None, record, {"test": diverged}, {}))
    assert [found.metric_type for found in card.data.eval_results] == ["accuracy", "worst_group_accuracy"]
    assert ".nan" not in str(card).split("---")[1]
    assert "| test | 99.9 | 99.9 | left | nan |" in str(card)
