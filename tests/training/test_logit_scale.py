"""`max_logit_scale` limits the inverse temperature after every step, and a warning says when it diverges."""

import copy

import pytest
import torch
from transformers import TrainerCallback

from starft_hf import StarFTTrainer
from starft_hf.models.encoder import logit_scale_of
from starft_hf.models.families import family_of
from starft_hf.training.logit_scale import LogitScaleCallback
from tests.support.families import family as make
from tests.support.runs import steps


class Push(TrainerCallback):
    """Gives the parameter of the temperature a gradient that raises the scale, or lowers it."""

    def __init__(self, direction=1):
        self.direction = direction

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        row = family_of(model)
        getattr(model, row.temperature).grad.fill_(-self.direction if row.stores_log else self.direction)


def set_scale(model, scale):
    row = family_of(model)
    with torch.no_grad():
        parameter = getattr(model, row.temperature).fill_(scale)
        parameter.log_() if row.stores_log else parameter.reciprocal_()
    return model


@pytest.fixture
def scales(config, dataset):
    """The scale after every step of a run in which it is pushed."""

    def run(model, processor, direction=1, peft_config=None, **settings):
        settings = {"regularizer": "none", "warmup_steps": 0, "learning_rate": 0.1, "freeze": ["vision"], **settings}
        more = {"processing_class": processor, "peft_config": peft_config, "callbacks": [Push(direction)]}
        trainer = StarFTTrainer(model, config(**settings), dataset, **more)
        trainer.train()
        return [step["logit_scale"] for step in steps(trainer)]

    return run


@pytest.mark.parametrize("family", ["clip", "siglip", "align"])
def test_the_scale_stays_below_its_limit(scales, family):
    model, processor = make(family)
    set_scale(model, 2.0)
    assert scales(copy.deepcopy(model), processor, max_steps=1)[0] > 2.1
    assert scales(model, processor, max_logit_scale=2.05) == pytest.approx([2.05] * 3, rel=1e-6)


@pytest.mark.parametrize("settings", [{"gradient_accumulation_steps": 2}, {"peft_config": "lora"}], ids=str)
def test_so_it_does_with_accumulation_and_adapters(clip, processor, scales, settings):
    found = scales(set_scale(clip, 99.0), processor, max_logit_scale=100, learning_rate=1.0, **settings)
    assert found == pytest.approx([100.0] * 3, rel=1e-6)


def test_a_limit_that_is_not_reached_changes_nothing(clip, processor, scales):
    assert scales(copy.deepcopy(clip), processor, max_logit_scale=1000) == scales(clip, processor)


def test_a_scale_that_starts_above_the_limit_is_refused(clip, processor, config, dataset):
    clip = set_scale(clip, 117.3)
    with pytest.raises(ValueError, match=r"CLIPModel starts at 117\.3.*Set max_logit_scale=118, or None"):
        StarFTTrainer(clip, config(max_logit_scale=100), dataset, processing_class=processor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_scale_of_clip_is_at_the_limit_however_it_is_rounded(clip, processor, config, dataset, dtype):
    clip.logit_scale.data = torch.tensor(4.6052).to(dtype).float()
    args = config(max_logit_scale=100, max_steps=1)
    StarFTTrainer(clip, args, dataset, processing_class=processor).train()
    assert logit_scale_of(clip).item() <= 100.0001


def test_a_limit_without_effect_is_warned_of(clip, processor, config, dataset, caplog):
    for settings in ({"base_loss": "cross_entropy"}, {"freeze": ["logit_scale"]}):
        StarFTTrainer(
            copy.deepcopy(clip), config(max_logit_scale=100, **settings), dataset, processing_class=processor
        )
        reason = next(f"with {name}={value!r}" for name, value in settings.items())
        assert f"max_logit_scale=100 has no effect {reason}" in caplog.text


@pytest.mark.parametrize("limit", [0, -1, float("inf")])
def test_a_limit_must_be_positive(config, limit):
    with pytest.raises(ValueError, match=r"max_logit_scale is .*must be a positive number, or None for no limit"):
        config(max_logit_scale=limit)


def test_a_scale_that_runs_away_is_warned_of_once(clip, processor, scales, caplog):
    scales(set_scale(copy.deepcopy(clip), 90.0), processor, learning_rate=0.5)
    assert caplog.text.count("The logit scale diverges: it started at 90 and is ") == 1
    assert "set max_logit_scale=100, which CLIP was trained with" in caplog.text
    caplog.clear()
    scales(set_scale(clip, 10.0), processor, direction=-1, learning_rate=1.0)
    assert caplog.text.count("diverges: it started at 10 and is 0.986 at step 3") == 1
    assert "max_logit_scale" not in caplog.text


@pytest.mark.parametrize(("start", "scale", "warns"), [(100, 105, 0), (100, 111, 1), (14.3, 99, 0), (14.3, 101, 1)])
def test_what_counts_as_running_away(start, scale, warns, caplog):
    callback, state = (
        LogitScaleCallback(start, None),
        type("State", (), {"is_world_process_zero": True, "global_step": 3}),
    )
    callback.on_log(None, state, None, {"logit_scale": scale})
    assert caplog.text.count("diverges") == warns
