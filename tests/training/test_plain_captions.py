"""Plain captions among the spurious ones: how many by default, and what they are."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from starft_hf import SpuriosityPool, StarFTConfig, StarFTTrainer
from tests.support.multi_label import make_multi_label_dataset
from tests.support.runs import steps
from tests.support.tiny import CLASS_NAMES, MANY_NAMES, captioned, make_dataset


TWO = CLASS_NAMES[:2]
POOL = ["{} in the snow.", "{} at night.", "a striped {class}."]


@pytest.fixture
def make(clip, processor, config):
    def run(dataset, spuriosity=POOL, **settings):
        return StarFTTrainer(clip, config(**settings), dataset, processing_class=processor, spuriosity=spuriosity)

    return run


def share_of(trainer):
    """How much of the weight of the templates that are drawn is that of the plain one."""
    pool = trainer.bank.pool
    weights = dict(zip(pool, pool.weights or [1] * len(pool), strict=True))
    return weights.get("{}.", 0) / sum(weights.values())


@pytest.mark.parametrize(
    ("classes", "settings", "share"),
    [
        (2, {}, 0.25),
        (3, {}, 0.25),
        (4, {}, 0.25),
        (5, {}, 0),
        (2, {"reg_weight": 10.0}, 0.25),
        (2, {"regularizer": "kl"}, 0),
        (2, {"plain_caption_share": 0}, 0),
        (4, {"regularizer": "star"}, 0),
        (4, {"plain_caption_share": 0.5}, 0.5),
        (4, {"plain_caption_share": "0.1", "regularizer": "kl"}, 0.1),
    ],
    ids=str,
)
def test_how_many_there_are(make, classes, settings, share):
    trainer = make(make_dataset(class_names=MANY_NAMES[:classes]), **settings)
    assert share_of(trainer) == pytest.approx(share)
    # What is recorded, published and audited is what was given.
    assert list(trainer.setup.pool) == POOL
    assert trainer.record.config["plain_caption_share"] == (share or trainer.args.plain_caption_share)


def test_none_by_default_where_it_was_not_measured(make):
    assert share_of(make(captioned(), caption_column="caption", spuriosity=POOL[:2])) == 0
    two = make_dataset(class_names=TWO).add_column("caption", captioned()["caption"])
    assert share_of(make(two, caption_column="caption")) == 0
    assert share_of(make(make_multi_label_dataset(), base_loss="multi_label")) == 0


def test_they_are_drawn_as_often_as_that_and_are_the_captions(make):
    trainer = make(make_dataset(400, class_names=TWO), caption_template="a photo of a {}.")
    examples = trainer.train_dataset.__getitems__(range(400))
    plain = np.mean([example["spurious_caption"] == example["caption"] for example in examples])
    assert plain == pytest.approx(0.25, abs=0.07)
    trainer.train()
    assert all(np.isfinite(entry["reg_loss"]) for entry in steps(trainer))


def test_a_pool_that_has_them_stays_as_it_is(make):
    pool = SpuriosityPool(["{} in the snow.", "{}."], weights=[9, 1])
    assert make(make_dataset(class_names=TWO), pool).bank.pool == pool


def test_templates_keep_their_weights_classes_and_aspects():
    pool = SpuriosityPool(POOL, weights=[1, 2, 1], classes=[["owl"], None, None], aspects=["a", None, "b"], name="own")
    found = pool.with_plain_captions(0.2)
    assert found.weights == pytest.approx((0.2, 0.4, 0.2, 0.2))
    assert found.classes == (frozenset({"owl"}), None, None, None)
    assert found.aspects == ("a", None, "b", None)
    assert found.name == "own"
    assert found.without_plain_captions().templates == pool.templates
    assert pool.with_plain_captions(0) is pool
    plain = SpuriosityPool(["{}."])
    assert plain.without_plain_captions() is plain


@pytest.mark.parametrize("share", [1, -0.1, float("nan"), "much", None])
def test_other_shares_are_refused(config, share):
    with pytest.raises(ValueError, match=r"plain_caption_share is .*at least 0 and below 1, or 'auto'"):
        config(plain_caption_share=share)


def test_it_is_said(make, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.getLogger("starft_hf").setLevel(logging.INFO)
    logging.getLogger("starft_hf").info_once.__func__.cache_clear()
    make(make_dataset(class_names=TWO))
    expected = (
        "With 2 classes, the regularizer is 'kl' at a weight of 270, and 25% of the spurious captions are plain ones."
    )
    assert expected in caplog.text


def test_a_share_that_nothing_draws_by_is_warned_of(config, make, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.getLogger("starft_hf").warning_once.__func__.cache_clear()
    make(make_dataset(), regularizer="none", plain_caption_share=0.5)
    assert "plain_caption_share=0.5 has no effect with regularizer='none'" in caplog.text


def test_a_run_is_repeated_with_the_share_that_it_had(make, tmp_path):
    trainer = make(make_dataset(class_names=TWO))
    trainer.train()
    trainer.save_model()
    folder = trainer.args.output_dir
    record = json.loads((Path(folder) / "starft.json").read_text())
    assert record["config"]["plain_caption_share"] == 0.25
    again = StarFTConfig.from_pretrained(folder, output_dir=str(tmp_path / "again"), use_cpu=True)
    assert again.plain_caption_share == 0.25


def test_the_weights_of_images_are_those_of_what_was_given(make):
    settings = {"reweight": "attribution", "crop_scale": None}
    runs = [make(make_dataset(class_names=TWO), **settings, plain_caption_share=share) for share in (0, 0.5)]
    for run in runs:
        run.setup.prepare(run.args.device)
    weights = [run.sample_weights._weights for run in runs]
    assert weights[0].equal(weights[1])
