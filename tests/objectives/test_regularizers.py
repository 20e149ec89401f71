"""L2-SP and CAR-FT, through the trainer, against their definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F

from starft_hf import StarFTTrainer


POOL = ["{} in the snow.", "{} at night.", "a striped {class}."]


def run(clip, processor, config, dataset, **settings):
    args = config(**{"reg_schedule": "constant", "reg_weight": 3.0, "max_steps": 3, "crop_scale": None} | settings)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor, spuriosity=POOL)
    inputs = []
    losses = trainer.training_losses

    def record(model, batch, reg_weight):
        pixels = trainer.encoder.normalized(batch["pixel_values"])
        inputs.append(({**batch, "pixel_values": pixels}, copy.deepcopy(trainer.model)))
        return losses(model, batch, reg_weight)

    trainer.training_losses = record
    trainer.train()
    logged = [entry["reg_loss"] for entry in trainer.state.log_history if "reg_loss" in entry]
    return trainer, logged, inputs


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_l2_sp_is_half_the_squared_distance_from_the_start(clip, processor, config, dataset, base_loss):
    clip = clip.double()
    start = {name: value.detach().clone() for name, value in clip.named_parameters()}
    _, logged, inputs = run(clip, processor, config, dataset, regularizer="l2-sp", base_loss=base_loss)
    assert logged[0] == 0
    for value, (_, model) in zip(logged, inputs, strict=True):
        weights = dict(model.named_parameters())
        expected = sum((weights[name] - before).square().sum().item() for name, before in start.items()) / 2
        assert value == pytest.approx(expected, rel=1e-9)
    assert logged[2] > 0


def car_ft(model, reference, processor, batch, names):
    """KL( p0(context | x) || p(context | x) ), contexts being the average of their template over classes."""

    def texts_of(texts):
        tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
        return F.normalize(reference.get_text_features(**tokens).pooler_output, dim=-1)

    templates = ["a photo of a {} in the snow.", "a photo of a {} at night.", "a striped {}."]
    with torch.no_grad():
        contexts = torch.stack([texts_of([template.format(name) for name in names]).mean(0) for template in templates])
        contexts = F.normalize(contexts, dim=-1)
        scale = reference.logit_scale.exp()
        log_p, log_p0 = (
            (
                scale
                * F.normalize(
                    encoder.get_image_features(pixel_values=batch["pixel_values"].double()).pooler_output, dim=-1
                )
                @ contexts.T
            ).log_softmax(-1)
            for encoder in (model, reference)
        )
        return (log_p0.exp() * (log_p0 - log_p)).sum(-1).mean().item()


@pytest.mark.parametrize("cache", ["none", "text", "full"])
def test_car_ft_is_its_definition(clip, processor, config, dataset, cache):
    reference = copy.deepcopy(clip).double()
    _, logged, inputs = run(
        clip.double(), processor, config, dataset, regularizer="car-ft", reference_cache=cache, learning_rate=1e-2
    )
    for value, (batch, model) in zip(logged, inputs, strict=True):
        expected = car_ft(model, reference, processor, batch, dataset.features["label"].names)
        assert value == pytest.approx(expected, abs=1e-12)
    assert logged[2] > 1e-6


def test_both_keep_the_model_nearer_to_where_it_started(clip, processor, config, dataset):
    start = copy.deepcopy(clip.state_dict())

    def distance(**settings):
        trainer, *_ = run(
            copy.deepcopy(clip), processor, config, dataset, max_steps=10, learning_rate=1e-2, **settings
        )
        return sum((value - start[name]).square().sum().item() for name, value in trainer.model.state_dict().items())

    free = distance(regularizer="none")
    assert distance(regularizer="l2-sp", reg_weight=10.0) < free


def test_what_they_cannot_do_is_refused(clip, processor, config, dataset):
    with pytest.raises(ValueError, match="compares the weights with those they started from"):
        StarFTTrainer(
            clip, config(regularizer="l2-sp", reg_weight=1), dataset, processing_class=processor, peft_config="lora"
        )
    with pytest.raises(ValueError, match="averages templates over classes"):
        StarFTTrainer(
            clip,
            config(regularizer="car-ft", reg_weight=1, caption_column="note"),
            dataset.remove_columns("label"),
            processing_class=processor,
        )
