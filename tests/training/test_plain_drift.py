"""The divergence on plain captions, which is logged and trains nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F

from starft_hf import StarFTTrainer
from tests.support.runs import steps


POOL = ["{} in the snow.", "{} at night.", "a striped {class}."]


def drift(model, reference, trainer, batch):
    """KL( p0(caption | x) || p(caption | x) ) over the plain captions of a batch."""
    bank, number = trainer.bank, len(trainer.bank.caption_templates)
    captions = [bank.caption(*divmod(index, number)) for index in batch["caption_ids"].tolist()]
    tokens = trainer.processing_class.tokenizer(captions, padding=True, return_tensors="pt")
    tokens, reference = tokens.to(trainer.args.device), reference.to(trainer.args.device)
    pixels = trainer.encoder.normalized(batch["pixel_values"]).double()

    def log_probabilities(tower):
        images = F.normalize(tower.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        texts = F.normalize(tower.get_text_features(**tokens).pooler_output, dim=-1)
        return (reference.logit_scale.exp() * images @ texts.T).log_softmax(-1)

    with torch.no_grad():
        tuned, before = log_probabilities(model), log_probabilities(reference)
        return (before.exp() * (before - tuned)).sum(-1).mean().item()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reference_cache": "none"},
        {"crop_scale": None, "reference_cache": "full"},
        {"mini_batch_size": 3, "caption_template": ["a photo of a {}.", "a drawing of a {}."]},
        {"regularizer": "conditional"},
        {"regularizer": "conditional", "reference_cache": "none"},
        {"regularizer": "car-ft", "reg_weight": 1},
    ],
    ids=str,
)
def test_it_is_its_definition(clip, processor, config, dataset, settings):
    clip = clip.double()
    reference, seen = copy.deepcopy(clip), []
    trainer = StarFTTrainer(
        clip, config(learning_rate=1e-2, **settings), dataset, processing_class=processor, spuriosity=POOL
    )
    losses = trainer.training_losses

    def record(model, batch, reg_weight):
        seen.append(drift(model, reference, trainer, batch))
        return losses(model, batch, reg_weight)

    trainer.training_losses = record
    trainer.train()
    assert [entry["plain_drift"] for entry in steps(trainer)] == pytest.approx(seen, rel=1e-9, abs=1e-12)
    assert seen[0] == 0
    assert seen[2] > 1e-3


def test_a_column_of_captions_without_a_cache_has_it(clip, processor, config, dataset):
    names = dataset.features["label"].names
    captions = dataset.map(lambda label: {"note": f"a photo of a {names[label]}."}, input_columns=["label"])
    trainer = StarFTTrainer(clip, config(caption_column="note"), captions, processing_class=processor)
    trainer.train()
    assert steps(trainer)[2]["plain_drift"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"base_loss": "cross_entropy"},
        {"regularizer": "none"},
        {"regularizer": "l2-sp", "reg_weight": 1},
        {"reference_text_cache_gib": 0},
    ],
    ids=str,
)
def test_it_is_not_measured_where_captions_would_be_encoded_for_it(clip, processor, config, dataset, settings):
    trainer = StarFTTrainer(clip, config(**settings), dataset, processing_class=processor)
    trainer.train()
    assert not any("plain_drift" in entry for entry in steps(trainer))
