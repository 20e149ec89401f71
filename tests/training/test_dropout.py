"""Training without dropout, as the reference, unless a run asks for it."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import VisionTextDualEncoderModel

from starft_hf import StarFTTrainer
from starft_hf.models.modes import disable_dropout, has_dropout
from tests.support.families import family, towers


REGULARIZED = {"regularizer": "kl", "reg_weight": 10.0, "crop_scale": None, "warmup_steps": 0, "max_steps": 2}


def make(name):
    """A model with the dropout that its family has by default, and its processor."""
    if name != "vit and bert":
        return family(name)
    model, processor = towers("vit", "bert")
    text = model.config.text_config
    text.hidden_dropout_prob = text.attention_probs_dropout_prob = 0.1
    torch.manual_seed(0)
    return VisionTextDualEncoderModel(model.config), processor


@pytest.fixture
def train(config, dataset, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)

    def run(model, processor, peft_config=None, **settings):
        # Warnings are given once in a process, and tests share one.
        caplog.clear()
        logging.getLogger("starft_hf.training.trained_weights").warning_once.cache_clear()
        args = config(**REGULARIZED | settings)
        model = copy.deepcopy(model)
        trainer = StarFTTrainer(model, args, dataset, processing_class=processor, peft_config=peft_config)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "reg_loss" in entry]
        return trainer, [[entry[name] for entry in logged] for name in ("loss", "reg_loss")], caplog.text

    return run


@pytest.mark.parametrize("name", ["altclip", "chinese_clip", "align", "vit and bert"])
def test_the_regularizer_is_0_at_the_start_without_dropout(train, name):
    model, processor = make(name)
    assert has_dropout(model)
    trainer, (losses, divergences), said = train(model, processor)
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert f"The dropout of the {type(model).__name__} is switched off" in said
    assert trainer.model.training
    # Which is exact in parts only without dropout.
    assert train(model, processor, mini_batch_size=3)[1][0] == pytest.approx(losses, rel=1e-4)


def test_dropout_stays_where_it_is_asked_for(train):
    model, processor = make("vit and bert")
    trainer, (_, divergences), said = train(model, processor, disable_dropout=False)
    assert divergences[0] > 0.01
    assert has_dropout(trainer.model)
    assert "drops at random while training, and the reference does not" in said


def test_a_model_without_dropout_says_that_nothing_is_switched(train, clip, processor):
    losses, said = train(clip, processor)[1:]
    assert "dropout" not in said
    kept, said = train(clip, processor, disable_dropout=False)[1:]
    assert kept == losses
    assert "disable_dropout=False has no effect: the CLIPModel has no dropout" in said


def test_the_dropout_of_an_adapter_stays(train, clip, processor):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3)
    trainer, (_, divergences), said = train(clip, processor, adapter)
    rates = {module.p for module in trainer.model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.3}
    # An adapter starts with zeros, whichever of its inputs are dropped.
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert "dropout" not in said
    model = nn.ModuleDict({"tower": nn.MultiheadAttention(4, 1, dropout=0.2), "adapted": trainer.model})
    assert disable_dropout(model)
    assert not disable_dropout(model)
    assert model["tower"].dropout == 0
    assert {module.p for module in trainer.model.modules() if isinstance(module, nn.Dropout)} == {0.3}
