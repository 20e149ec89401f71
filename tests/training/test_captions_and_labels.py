"""Which regularizers train with labels, with captions from the data, or with both; the guide says the same."""

import copy
import re
from pathlib import Path

import pytest
import torch

from starft_hf import Regularizer, SpuriosityPool, StarFTTrainer, register_regularizer
from starft_hf.models.encoder import batch_texts
from starft_hf.objectives import alignment_loss
from starft_hf.objectives.regularizers import _REGISTRY, regularizer_names
from starft_hf.training.plan import RunInputs, RunPlan
from tests.support.runs import assert_same_weights, steps
from tests.support.tiny import captioned, make_dataset


POOL = ["{} in the snow.", "{} at night.", "{} on a beach."]
GUIDE = Path(__file__).parents[2] / "docs" / "retrieval.md"

DATA = {
    "labels": make_dataset(),
    "captions": captioned(),
    "both": make_dataset().add_column("caption", captioned()["caption"]),
}


def settings_of(kind):
    return {} if kind == "labels" else {"caption_column": "caption"}


def rows_of_guide():
    """What the guide's table says, by regularizer: "yes" or something else for every kind of data."""
    found = re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", GUIDE.read_text(), re.MULTILINE)
    return {name: dict(zip(DATA, cells, strict=True)) for name, *cells in found}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("name", regularizer_names())
def test_the_guide_says_what_is_accepted(config, name, kind):
    args = config(regularizer=name, reg_weight=1.0, **settings_of(kind))
    given = RunInputs("nobody/nothing", args, DATA[kind])
    cell = rows_of_guide()[name][kind]
    if cell.startswith("yes"):
        assert RunPlan.check(given).columns.caption == (None if kind == "labels" else "caption")
    else:
        assert cell.startswith("no")
        with pytest.raises(ValueError, match=r"needs labels with class names; set label_column.*'kl'"):
            RunPlan.check(given)


@pytest.fixture
def trained(clip, processor, config):
    """Trains a copy of the model, and keeps what the regularizer should be in every step."""

    def train(rows, **settings):
        settings = {"reg_weight": 5.0, "learning_rate": 1e-2, "caption_column": "caption"} | settings
        reference = copy.deepcopy(clip).double()
        trainer = StarFTTrainer(
            copy.deepcopy(reference), config(**settings), rows, processing_class=processor, spuriosity=POOL
        )
        losses, trainer.expected = trainer.training_losses, []

        def embeds(model, batch):
            reference.to(trainer.args.device)
            with torch.no_grad():
                texts = trainer.encoder.encode(model, texts=batch_texts(batch))
                return trainer.encoder.encode(model, images=batch), texts[batch["spurious_rows"]]

        def record(model, batch, reg_weight):
            pairs = (*embeds(model, batch), *embeds(reference, batch))
            examples = [trainer.train_dataset.make.targets(rows[row], row) for row in batch["sample_index"].tolist()]
            texts = [example["caption"] for example in examples]
            same = [example["label"] for example in examples] if "label" in rows.column_names else texts
            labels = torch.tensor([list(same).index(one) for one in same], device=trainer.args.device)
            by = labels if settings["regularizer"] == "star" else None
            trainer.expected.append(alignment_loss(*pairs, reference.logit_scale.exp(), labels=by).item())
            return losses(model, batch, reg_weight)

        if "spurious" in str(trainer.setup.plan.strategy).lower():
            trainer.training_losses = record
        trainer.train()
        return trainer

    return train


@pytest.mark.parametrize("kind", ["captions", "both"])
@pytest.mark.parametrize("regularizer", ["star", "kl"])
@pytest.mark.parametrize("more", [{}, {"crop_scale": None}], ids=["live", "cached images"])
def test_captions_of_the_data_are_compared(trained, kind, regularizer, more):
    """star leaves out rows of the same class, or with the same caption where there are no classes; kl none."""
    trainer = trained(DATA[kind], regularizer=regularizer, **more)
    assert [entry["reg_loss"] for entry in steps(trainer)] == pytest.approx(trainer.expected, abs=1e-9)
    assert trainer.expected[-1] > 1e-3


def test_equal_captions_and_equal_classes_are_not_the_same(trained):
    runs = {
        (kind, name): steps(trained(DATA[kind], regularizer=name))[-1]["reg_loss"]
        for kind in ("captions", "both")
        for name in ("star", "kl")
    }
    assert runs["captions", "kl"] == pytest.approx(runs["both", "kl"], abs=1e-9)
    assert len({round(value, 6) for value in runs.values()}) == 3


@pytest.mark.parametrize("name", ["conditional", "car-ft"])
def test_classes_are_compared_whatever_the_captions_of_the_rows(trained, name):
    """The base loss has the captions of the data, the regularizer those of the classes, which are cached."""
    cached, live = (trained(DATA["both"], regularizer=name, reference_cache=cache) for cache in ("auto", "none"))
    assert "texts" in cached.reference.info.kind
    assert_same_weights(cached, live, rtol=0, atol=1e-9)
    plain = trained(DATA["both"], regularizer="none", reg_weight="auto")
    of_classes = trained(DATA["labels"], regularizer=name, caption_column=None)
    first = [steps(run)[0]["base_loss"] for run in (cached, plain, of_classes)]
    assert first[0] == pytest.approx(first[1], abs=1e-12)
    assert abs(first[0] - first[2]) > 1e-3
    assert steps(cached)[-1]["reg_loss"] > 1e-3


def test_templates_that_need_a_class_are_left_out_without_one(clip, processor, config, caplog):
    pool = SpuriosityPool(["a striped {class}.", *POOL], weights=[5, 1, 2, 3])
    args = config(caption_column="caption")
    trainer = StarFTTrainer(clip, args, DATA["captions"], processing_class=processor, spuriosity=pool)
    assert trainer.setup.pool == SpuriosityPool(POOL, weights=[1, 2, 3])
    assert "'a striped {class}.', which needs a class name" in caplog.text
    assert "1 such templates are excluded, and 3 are used" in caplog.text
    both = StarFTTrainer(clip, args, DATA["both"], processing_class=processor, spuriosity=pool)
    assert both.setup.pool == pool


def test_a_regularizer_of_ones_own_gets_captions_as_labels_only_if_it_asks(clip, processor, config, monkeypatch):
    seen = {}

    def compute(inputs):
        seen["labels"] = inputs.labels, inputs.column_labels
        return inputs.image_embeds.sum(-1) * 0

    monkeypatch.setattr("starft_hf.objectives.regularizers._REGISTRY", dict(_REGISTRY))
    for asks in (False, True):
        register_regularizer(Regularizer(f"own {asks}", compute, captions_as_labels=asks))
        args = config(regularizer=f"own {asks}", reg_weight=1.0, caption_column="caption", max_steps=1)
        StarFTTrainer(clip, args, DATA["captions"], processing_class=processor, spuriosity=POOL).train()
        if asks:
            assert seen["labels"][0].tolist() == seen["labels"][1].tolist()
            assert 1 < len(set(seen["labels"][0].tolist())) < 8
        else:
            assert seen["labels"] == (None, None)
