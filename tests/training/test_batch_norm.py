"""Batch norm while training: as in the reference, unless a run asks for statistics of the batch."""

import copy
import logging
from functools import partial

import pytest
import torch
from torch import nn
from transformers import CLIPImageProcessor

from starft_hf import StarFTTrainer, interpolate, uniform_soup
from starft_hf.models.modes import differs_in_training, has_batch_statistics, has_dropout
from tests.support.families import family, towers
from tests.support.tiny import CHECKPOINTING


MODELS = {
    "align": partial(family, "align"),
    "efficientnet": partial(towers, "efficientnet", "bert"),
    "resnet": partial(towers, "resnet", "distilbert"),
}
CONSTANT = {"regularizer": "kl", "reg_weight": 5.0, "reg_schedule": "constant", "warmup_steps": 0}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def make(name):
    """A model in float64 without dropout, whose running statistics are those of noise."""
    model, processor = MODELS[name](dtype=torch.float64)
    for module in model.modules():
        rates = [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
        vars(module).update(dict.fromkeys(["p", *rates] if isinstance(module, nn.Dropout) else rates, 0.0))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    size = processor.image_processor.crop_size["height"]
    noise = torch.randn(8, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train().vision_model(pixel_values=noise)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval(), processor


def statistics(model):
    return {
        name.replace("base_model.model.", ""): value.clone()
        for name, value in model.state_dict().items()
        if name.endswith(STATISTICS)
    }


@pytest.fixture
def train(config, dataset):
    def run(model, processor, peft_config=None, **settings):
        args = config(**CONSTANT | {"max_steps": 2, "crop_scale": None} | settings)
        trainer = StarFTTrainer(
            copy.deepcopy(model), args, dataset, processing_class=processor, peft_config=peft_config
        )
        trainer.train()
        return trainer, [entry for entry in trainer.state.log_history if "reg_loss" in entry]

    return run


@pytest.mark.parametrize("peft_config", [None, "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_the_regularizer_is_0_at_the_start_and_statistics_stay(name, peft_config, train):
    model, processor = make(name)
    before = statistics(model)
    trainer, log = train(model, processor, peft_config, reference_cache="none")
    assert log[0]["reg_loss"] == pytest.approx(0, abs=1e-12)
    assert log[1]["reg_loss"] > 1e-12
    after = statistics(trainer.model)
    assert len(after) == len(before) > 0
    assert all(torch.equal(value, after[key].cpu()) for key, value in before.items())
    trained = {
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, trainer.model.state_dict().get(key, value).cpu())
    }
    norms = [key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    # Their weights are trained all the same.
    assert peft_config == "lora" or trained >= {f"{key}.weight" for key in norms}


@pytest.mark.parametrize("name", MODELS)
def test_what_saves_memory_or_time_changes_nothing(name, train):
    model, processor = make(name)
    ways = [{"reference_cache": "none"}, {"reference_cache": "full"}, {"mini_batch_size": 3}, {CHECKPOINTING: True}]
    (first, _), *others = [train(model, processor, **way) for way in ways]
    for trainer, log in others:
        for key, value in first.model.state_dict().items():
            torch.testing.assert_close(trainer.model.state_dict()[key], value, rtol=0, atol=1e-9, msg=key)
        assert log[0]["reg_loss"] == pytest.approx(0, abs=1e-12)


def test_a_row_that_is_skipped_changes_no_other(train, dataset, config):
    model, processor = make("efficientnet")
    _, log = train(model, processor, on_bad_image="skip")
    assert log[0]["reg_loss"] == pytest.approx(0, abs=1e-12)


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.getLogger("starft_hf").setLevel(logging.WARNING)
    logging.getLogger("starft_hf").warning_once.__func__.cache_clear()
    return lambda: caplog.text


@pytest.mark.parametrize("peft_config", [None, "lora"])
def test_without_freezing_what_follows_is_warned_of_or_refused(peft_config, train, warned):
    model, processor = make("efficientnet")
    trainer, log = train(model, processor, peft_config, freeze_batch_norm=False)
    assert log[0]["reg_loss"] > 1e-6
    assert "the regularizer is not 0 at the start" in warned()
    before, after = statistics(model), statistics(trainer.model)
    moved = any(not torch.equal(before[key], after[key].cpu()) for key in before if not key.endswith("tracked"))
    # Under an adapter they belong to the reference.
    assert moved is (peft_config is None)
    for settings in ({"mini_batch_size": 3}, {"on_bad_image": "skip"}):
        with pytest.raises(ValueError, match=r"statistics of a batch.* leave freeze_batch_norm at True, or"):
            train(model, processor, freeze_batch_norm=False, **settings)


def test_what_is_done_is_said(train, clip, processor, warned):
    train(*make("efficientnet"), regularizer="none", reg_weight=0.5, reg_schedule="linear")
    assert "VisionTextDualEncoderModel uses its running statistics while training" in warned()
    train(clip, processor, freeze_batch_norm=False)
    assert "freeze_batch_norm=False has no effect: the CLIPModel has no batch norm" in warned()


def test_batch_norm_without_running_statistics_cannot_be_frozen(train, warned):
    model, processor = make("resnet")
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    assert has_batch_statistics(model, frozen=True)
    with pytest.raises(ValueError, match="statistics of a batch, which a part of the batch does not have; leave mini"):
        train(model, processor, mini_batch_size=3)
    train(model, processor)
    assert "which cannot be frozen" in warned()


def test_averages_of_other_statistics_are_warned_of(tmp_path, warned):
    model, _ = make("resnet")
    other = copy.deepcopy(model)
    model.save_pretrained(tmp_path / "a")
    interpolate(model, other, 0.5)
    uniform_soup([tmp_path / "a", tmp_path / "a"], tmp_path / "same")
    assert "running statistics" not in warned()
    norm = next(module for module in other.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_mean += 1
    mean = interpolate(model, other, 0.5)
    assert "differ in running statistics of batch norm" in warned()
    name = next(key for key, value in model.state_dict().items() if not torch.equal(value, other.state_dict()[key]))
    torch.testing.assert_close(mean.state_dict()[name], model.state_dict()[name] + 0.5)
    other.save_pretrained(tmp_path / "b")
    logging.getLogger("starft_hf").warning_once.__func__.cache_clear()
    count = warned().count("differ in running statistics")
    uniform_soup([tmp_path / "a", tmp_path / "b"], tmp_path / "mixed")
    assert warned().count("differ in running statistics") == count + 1


class StochasticDepth(nn.Module):
    """As that of torchvision."""

    def __init__(self, p, mode="row"):
        super().__init__()
        self.p, self.mode = p, mode


class DropPath(nn.Module):
    """As that of many models."""

    def __init__(self, drop_prob=None):
        super().__init__()
        self.drop_prob = drop_prob


class Attention(nn.Module):
    def __init__(self, **rates):
        super().__init__()
        vars(self).update(rates)


@pytest.mark.parametrize(
    ("module", "drops"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout2d(0.1), True),
        (nn.AlphaDropout(0.1), True),
        (nn.MultiheadAttention(4, 1, dropout=0.1), True),
        (StochasticDepth(0.2), True),
        (DropPath(0.1), True),
        (Attention(dropout_prob=0.1), True),
        (Attention(attention_probs_dropout_prob=0.1), True),
        (Attention(layerdrop=1), True),
        (Attention(drop_path_rate=0.1), True),
        (nn.Dropout(0.0), False),
        (DropPath(None), False),
        (StochasticDepth(0.0), False),
        (Attention(dropout=0.0, drop_last=True, p=3.0), False),
        (nn.BatchNorm2d(2), False),
    ],
    ids=str,
)
def test_everything_that_drops_at_random_is_found(module, drops):
    assert has_dropout(nn.Sequential(module)) is drops
    assert differs_in_training(nn.Sequential(module).eval()) is drops


@pytest.mark.parametrize(
    ("vision", "setting"),
    [
        *(("swin", "drop_path_rate"), ("convnext", "drop_path_rate"), ("efficientnet", "drop_connect_rate")),
        *(("vit", "attention_probs_dropout_prob"), ("vit", "hidden_dropout_prob")),
    ],
)
def test_every_rate_of_a_tower_is_found(vision, setting):
    model, _ = towers(vision, "bert")
    assert not has_dropout(model)
    config = copy.deepcopy(model.config.vision_config)
    setattr(config, setting, 0.3)
    assert has_dropout(type(model.vision_model)(config))


def test_images_of_another_size_are_taken_by_a_convolutional_tower(train):
    model, processor = make("efficientnet")
    crop = {"height": 48, "width": 48}
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=crop)
    train(model, processor, max_steps=1)
