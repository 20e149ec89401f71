import numpy as np
import pytest
from transformers import AutoProcessor

from starft_hf.demo.experiment import POOLS
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import (
    CAPTION_TEMPLATE,
    CLASS_NAMES,
    GROUP_NAMES,
    HELD_OUT_CLASSES,
    TASK_BACKGROUNDS,
    TRAINED_CLASSES,
    Task,
    draw_captioned,
    make_split,
)


def pixels(split):
    return np.stack([np.asarray(image) for image in split["image"]])


def test_a_split_is_a_function_of_its_seed():
    first, again, other = (make_split("validation", seed=seed, size=24) for seed in (3, 3, 4))
    assert np.array_equal(pixels(first), pixels(again))
    assert first["label"] == again["label"]
    assert not np.array_equal(pixels(first), pixels(other))


def test_splits_of_one_seed_share_no_image():
    splits = [make_split(name, seed=0, size=24) for name in ("train", "validation", "test", "held_out")]
    images = [image.tobytes() for split in splits for image in pixels(split)]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(("correlation", "share"), [(0.95, 0.95), (0.5, 0.5), (1.0, 1.0)])
def test_training_images_follow_the_correlation_exactly(correlation, share):
    train = make_split("train", correlation=correlation)
    homes = [Task().home_of(TRAINED_CLASSES[label]) for label in train["label"]]
    at_home = [group == f"{home} class on {home}" for group, home in zip(train["group"], homes, strict=True)]
    assert np.mean(at_home) == pytest.approx(share)


def test_scored_splits_have_at_least_200_images_in_every_group():
    test = make_split("test")
    counts = {group: test["group"].count(group) for group in GROUP_NAMES}
    assert sum(counts.values()) == len(test)
    assert len(set(counts.values())) == 1
    assert min(counts.values()) >= 200


def test_held_out_classes_are_distinguished_from_all_classes():
    held_out = make_split("held_out", size=40)
    names = held_out.features["label"].names
    assert {names[label] for label in held_out["label"]} == set(HELD_OUT_CLASSES)
    assert set(names) == {*TRAINED_CLASSES, *HELD_OUT_CLASSES}
    assert set(held_out["group"]) == set(TASK_BACKGROUNDS)


def test_columns_are_like_those_of_any_dataset():
    features = make_split("train", size=12).features
    assert type(features["image"]).__name__ == "Image"
    assert features["label"].names == list(TRAINED_CLASSES)


def test_every_word_of_a_template_is_a_token():
    tokenizer = AutoProcessor.from_pretrained(MODEL_FOLDER).tokenizer
    templates = [template for pool in POOLS.values() for template in pool] + [CAPTION_TEMPLATE]
    for template in templates:
        ids = tokenizer(template.replace("{}", "a photo of a star"))["input_ids"]
        assert tokenizer.unk_token_id not in ids, template


def test_pretraining_sees_every_word_of_every_template():
    rng = np.random.default_rng(0)
    seen = {word for _ in range(1500) for word in draw_captioned(rng)[1].rstrip(".").split()}
    for pool in POOLS.values():
        for template in pool:
            assert set(template.replace("{}", "").rstrip(".").split()) <= seen


def test_unknown_split_and_correlation_are_refused():
    with pytest.raises(ValueError, match=r"unknown split 'tset'. Did you mean 'test'\?"):
        make_split("tset")
    with pytest.raises(ValueError, match="correlation is 95"):
        make_split("train", correlation=95)


@pytest.mark.parametrize("number", [2, 4, 8])
def test_tasks_of_other_classes_and_backgrounds(number):
    task = Task(CLASS_NAMES[:number], ("brick", "sand"))
    train = make_split("train", size=80, correlation=0.8, task=task)
    assert train.features["label"].names == list(CLASS_NAMES[:number])
    groups = [group.split(" class on ") for group in train["group"]]
    assert {place for group in groups for place in group} == {"brick", "sand"}
    assert np.mean([home == place for home, place in groups]) == pytest.approx(0.8)
    assert all(("brick", "sand")[label % 2] == home for label, (home, _) in zip(train["label"], groups, strict=True))
    test = make_split("test", size=16, task=task)
    assert len(set(test["group"])) == 4
    if number == 8:
        with pytest.raises(ValueError, match="none is held out"):
            make_split("held_out", task=task)
    else:
        assert len(make_split("held_out", size=48, task=task).features["label"].names) == 8


def test_invalid_tasks_are_refused():
    with pytest.raises(ValueError, match="unknown class 'cube'"):
        Task(("circle", "cube"))
    with pytest.raises(ValueError, match="unknown background"):
        Task(backgrounds=("grass", "lava"))
    with pytest.raises(ValueError, match="two different backgrounds"):
        Task(backgrounds=("grass", "grass"))
    with pytest.raises(ValueError, match="at least two different classes"):
        Task(("circle", "circle"))
