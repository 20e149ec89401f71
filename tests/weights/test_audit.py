"""`audit`: its numbers are those of other ways of computing them, and a planted shortcut shows in them."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from starft_hf import SpuriosityPool, StarFTTrainer, audit, discover_spuriosity, evaluate_zero_shot, load, repair
from starft_hf.demo.experiment import Setting, run_settings
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, Task, make_split
from starft_hf.evaluation.forgetting import divergence, text_change, total_variation
from starft_hf.evaluation.sensitivity import attraction, shown_in
from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import HEAD_NAME
from starft_hf.weights.audit.measuring import named_groups
from starft_hf.weights.repair.groups import pseudo_groups


NAMES = ("circle", "square")
POOL = list(BACKGROUND_TEMPLATES[:4])


@pytest.fixture(scope="module")
def images():
    """60 images of two classes on two places."""
    return make_split("validation", seed=3, size=60, task=Task(NAMES))


@pytest.fixture
def settings(tmp_path):
    return {"cache_dir": tmp_path / "features", "progress": False, "spuriosity": POOL}


def moved(by):
    """The demo's model, moved a little."""
    model = CLIPModel.from_pretrained(MODEL_FOLDER)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(by * torch.randn(value.shape, generator=generator))
    return model


@pytest.fixture
def tuned(tmp_path):
    moved(0.02).save_pretrained(tmp_path / "tuned")
    load(MODEL_FOLDER).processor.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def test_groups_are_those_of_an_evaluation_with_intervals_around_them(tuned, images, settings):
    result = audit(tuned, MODEL_FOLDER, images, group_column="group", **settings)
    assert result.grouped_by == "group_column"
    for source, which in ((tuned, "after"), (MODEL_FOLDER, "before")):
        expected = evaluate_zero_shot(str(source), None, images, group_column="group", progress=False)
        assert getattr(result.average, which).accuracy == pytest.approx(expected.accuracy)
        assert getattr(result.average, which).ece == pytest.approx(expected.ece, abs=1e-6)
        found = {name: getattr(group, which).accuracy for name, group in result.groups.items()}
        assert found == pytest.approx(expected.group_accuracies)
    assert result.groups[result.worst_group].after.accuracy == min(g.after.accuracy for g in result.groups.values())
    for group in (result.average, *result.groups.values()):
        low, high = group.after.interval
        assert 0 <= low <= group.after.accuracy <= high <= 1
        assert high - low > 0 or group.after.accuracy in (0, 1)


def test_the_start_itself_has_forgotten_nothing_and_more_is_forgotten_the_further_a_model_moves(images, settings):
    kept = {"held out": make_split("held_out", size=40)}
    processor = load(MODEL_FOLDER).processor
    found = [
        audit(moved(by), MODEL_FOLDER, images, processor=processor, retention=kept, **settings)
        for by in (0, 0.02, 0.06)
    ]
    parts = [result.forgotten for result in found]
    changes = [(part.texts_rank_change, part.texts_divergence, part.answers_changed) for part in parts]
    assert changes[0] == (0, 0, 0)
    assert all(first < second for first, second in zip(changes[0], changes[1], strict=True))
    assert changes[1][0] < changes[2][0]
    assert changes[1][1] < changes[2][1]
    first = found[0]
    assert first.sensitivity.largest[2] == 0
    assert first.sensitivity.shift == first.sensitivity.shift_before
    assert first.forgotten.retention["held out"]["before"] == first.forgotten.retention["held out"]["after"]
    assert found[2].forgotten.retention["held out"]["after"] < first.forgotten.retention["held out"]["after"]


def test_without_groups_and_a_start_it_says_what_it_did_and_what_it_left_out(images, settings):
    images = images.remove_columns("group")
    result = audit(MODEL_FOLDER, None, images, vocabulary=["grass", "water", "sea"], **settings)
    assert result.grouped_by == "pseudo_groups"
    assert all(name.startswith(NAMES) or name == "all others" for name in result.groups)
    assert sum(group.images for group in result.groups.values()) == 60
    assert result.start is result.forgotten is result.average.before is result.sensitivity.shift_before is None
    assert "pass start=" in result.left_out["forgotten"]
    assert result.correlates.words == 3
    # The tokenizer knows none of these words.
    blind = audit(MODEL_FOLDER, None, images, vocabulary=None, **{**settings, "spuriosity": ["{} xyzzy."]})
    assert blind.grouped_by == "classes"
    assert blind.sensitivity is None
    assert "no template" in blind.left_out["sensitivity"]
    assert blind.score == min(group.after.accuracy for group in blind.groups.values())


def test_a_head_is_audited_and_reads_no_captions(images, settings):
    model, processor = CLIPModel.from_pretrained(MODEL_FOLDER), load(MODEL_FOLDER).processor
    plain = audit(model, MODEL_FOLDER, images, processor=processor, **settings)
    head = zero_shot_head(model, DualEncoder.of(model, processor), NAMES, ["a photo of a {}."])
    model.add_module(HEAD_NAME, head)
    result = audit(model, MODEL_FOLDER, images, processor=processor, **settings)
    assert result.sensitivity.shift is None
    assert "reads no captions" in result.left_out["sensitivity.shift"]
    assert np.allclose(result.sensitivity.attraction, plain.sensitivity.attraction, atol=1e-5)
    assert result.score == pytest.approx(plain.score, abs=1e-4)


def test_unreadable_images_are_left_out(tuned, images, settings):
    broken = images.cast_column("image", type(images.features["image"])(decode=False)).to_list()
    broken[7]["image"] = {"bytes": b"no image", "path": None}
    broken = images.from_list(broken, features=images.features)
    result = audit(tuned, MODEL_FOLDER, broken, on_bad_image="skip", vocabulary=None, **settings)
    assert result.images == len(result.correlates.groups) == 59
    assert list(result.rows) == [row for row in range(60) if row != 7]
    with pytest.raises(ValueError, match="row 7"):
        audit(tuned, MODEL_FOLDER, broken, vocabulary=None, **settings)
    with pytest.raises(ValueError, match="none of the 1 images"):
        audit(tuned, MODEL_FOLDER, broken.select([7]), on_bad_image="skip", vocabulary=None, **settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": None}, "dataset is a NoneType"),
        ({"retention": [1]}, "retention is a list; pass a dictionary"),
        ({"retention": {"other": None}}, "retention 'other' is a NoneType"),
        ({"vocabulary": "nowhere.txt"}, "no such file"),
        ({"alpha": 0.0001}, "permutations at least 1 / alpha"),
        ({"spuriosity": "backgrounds"}, "unknown spuriosity pool"),
        ({"group_column": "places"}, "no column 'places'"),
        ({"class_names": ["circle"]}, "class_names"),
        ({"templates": "a photo"}, "templates"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_a_model_is_loaded(changes, said, images, settings, monkeypatch):
    monkeypatch.setattr("starft_hf.weights.repair.labeled.load_subject", lambda *_: pytest.fail("it was loaded"))
    arguments = {"tuned": MODEL_FOLDER, "dataset": images, **settings, **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        audit(**arguments)


def test_what_is_saved_can_be_used(tuned, images, settings, tmp_path):
    result = audit(tuned, MODEL_FOLDER, images, group_column="group", **settings)
    page = result.save(tmp_path / "out").read_text()
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert {"groups", "forgotten", "sensitivity", "score"} <= set(content)
    assert content["score"] == result.score
    assert str(tmp_path) not in page + json.dumps(content)
    assert "<script" not in page
    assert all(name in page for name in result.groups)
    lines = (tmp_path / "out" / "pseudo_groups.csv").read_text().splitlines()
    assert len(lines) == 61
    assert (tmp_path / "out" / "pool.json").exists() == bool(result.correlates.templates)
    if result.correlates.templates:
        assert SpuriosityPool.load(tmp_path / "out" / "pool.json") == result.correlates.pool()
    with pytest.raises(FileExistsError):
        result.save(tmp_path / "out")


def test_attraction_is_that_of_a_model_that_reads_snow_as_wolf():
    labels, snow = np.array([0, 0, 1, 1, 1, 1]), np.array([[1], [0], [1], [1], [0], [0]], dtype=bool)
    reads_snow = np.where(snow, [[0.9, 0.1]], [[0.2, 0.8]])
    assert np.allclose(attraction(reads_snow, labels, snow), [[0.7], [-0.7]])
    assert np.allclose(attraction(np.full((6, 2), 0.5), labels, snow), 0)
    assert np.allclose(attraction(reads_snow, labels, np.ones((6, 1), dtype=bool)), 0)
    embeds = np.array([[1.0, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]])
    assert shown_in(embeds, np.array([[1.0, 0]]))[:, 0].tolist() == [True, False, False, True]


def test_divergences_are_their_definitions():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 4))
    p, q = (np.exp(part) / np.exp(part).sum(1, keepdims=True) for part in (first, second))
    assert np.allclose(divergence(first, second), (p * np.log(p / q)).sum(1))
    assert np.allclose(total_variation(first, second), np.abs(p - q).sum(1) / 2)
    rows = rng.normal(size=(6, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    # A rotation of all texts moves none of them relative to the others.
    assert text_change(rows, rows @ rotation, 10.0).divergence == pytest.approx(0, abs=1e-9)
    assert text_change(rows, rows[::-1].copy(), 10.0).rank_change > 0.1


@pytest.mark.slow
def test_plain_fine_tuning_on_a_shortcut_shows_more_than_an_aligned_one(tmp_path):
    train, test = make_split("train", seed=0), make_split("test", seed=1000, size=480)
    found = {}
    for name, regularizer in (("FLYP", "none"), ("kl", "kl")):
        args = run_settings(Setting(), str(tmp_path / name), regularizer=regularizer, disable_tqdm=True)
        trainer = StarFTTrainer(str(MODEL_FOLDER), args, train, spuriosity=list(BACKGROUND_TEMPLATES))
        trainer.train()
        trainer.save_model()
        settings = {"cache_dir": tmp_path / "features", "progress": False, "group_column": "group"}
        found[name] = audit(tmp_path / name, MODEL_FOLDER, test, spuriosity=list(BACKGROUND_TEMPLATES), **settings)
    flyp, kl = found["FLYP"], found["kl"]
    label, template, gain = flyp.sensitivity.largest
    assert gain > 1.5 * max(kl.sensitivity.largest[2], 0.02)
    # The class is at home on what attracts it.
    words = {"grass": ("grass", "lawn", "field"), "water": ("water", "sea", "lake")}
    attracts = flyp.sensitivity.templates[template]
    assert any(word in attracts for word in words[Task().home_of(flyp.class_names[label])])
    assert flyp.score < kl.score
    assert flyp.forgotten.answers_changed > kl.forgotten.answers_changed
    mistakes = [str(row) for row in flyp.correlates.found if row.of == "mistakes"]
    assert any("lake" in row or "water" in row or "sea" in row or "lawn" in row or "grass" in row for row in mistakes)


@pytest.mark.parametrize(
    "part", ["visual_projection.weight", "text_projection.weight", "logit_scale", "weight", "bias"]
)
def test_a_damaged_model_is_refused_and_not_said_to_answer_the_first_class(images, settings, part):
    model, processor = CLIPModel.from_pretrained(MODEL_FOLDER), load(MODEL_FOLDER).processor
    if part in ("weight", "bias"):
        head = zero_shot_head(model, DualEncoder.of(model, processor), NAMES, ["a photo of a {}."])
        model.add_module(HEAD_NAME, head)
    owner = model.get_submodule(HEAD_NAME) if part in ("weight", "bias") else model
    with torch.no_grad():
        owner.get_parameter(part).view(-1)[0] = float("nan")
    damaged = {
        "visual_projection.weight": "embeddings of images",
        "text_projection.weight": "embeddings of texts",
        "logit_scale": "logit scales",
    }.get(part, f"rows of the {part} of the head")
    match = rf"\d+ {damaged} are not finite.*; the model's weights are damaged"
    with pytest.raises(ValueError, match=match):
        audit(model, MODEL_FOLDER, images, processor=processor, **settings)
    with pytest.raises(ValueError, match=match):
        repair(model, processor, images, base=MODEL_FOLDER, group_column="group", **settings)
    if part.startswith("visual"):
        with pytest.raises(ValueError, match=match):
            discover_spuriosity(model, processor, images, POOL, progress=False)


def test_the_interval_of_the_worst_group_allows_for_its_choice(tuned, images, settings):
    result = audit(tuned, MODEL_FOLDER, images, group_column="group", **settings)
    worst = result.groups[result.worst_group].after
    low, high = result.worst_interval
    assert low < worst.interval[0] <= worst.accuracy <= high
    assert f"{100 * low:.1f} to {100 * high:.1f}%" in result.as_html()
    assert result.as_dict()["worst_interval"] == [low, high]


def test_a_pseudo_group_says_if_it_has_more_than_its_name():
    labels, seen = np.array([0] * 50 + [1] * 53), np.array([0] * 46 + [1] * 4 + [1] * 52 + [0])
    words = ["grass" if own == 0 else "snow" for own in seen]
    mixed = named_groups(["wolf", "husky"], labels, words, pseudo_groups(labels, seen))
    # The four wolves on snow and the husky on grass are too few for groups of their own.
    assert Counter(mixed) == {"wolf, grass": 46, "husky, snow": 52, "all others": 5}
    joined = named_groups(["wolf", "husky"], labels[:102], words[:102], pseudo_groups(labels[:102], seen[:102]))
    assert Counter(joined) == {"wolf, grass or others": 50, "husky, snow": 52}
