"""Weights of templates and their restrictions to classes, from the pool to the losses."""

import copy

import pytest
import torch

from starft_hf import SpuriosityPool, StarFTTrainer
from tests.support.tiny import CLASS_NAMES


TEMPLATES = ["{} in the snow.", "{} at night.", "{} by the sea."]


@pytest.fixture
def restricted():
    return SpuriosityPool(TEMPLATES, weights=[1, 50, 1], classes=[["truck", "fern"], None, ["owl"]])


def run(clip, processor, args, dataset, pool):
    """Trains; returns the losses and the drawn templates by sample and step."""
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor, spuriosity=pool)
    losses, drawn = trainer.training_losses, []

    def record(model, batch, *args):
        parts = [trainer.bank.parts_of(index) for index in batch["spurious_ids"].tolist()]
        drawn.extend(
            (sample, label, part[2])
            for sample, label, part in zip(
                batch["sample_index"].tolist(), batch["labels"].tolist(), parts, strict=True
            )
        )
        return losses(model, batch, *args)

    trainer.training_losses = record
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "base_loss" in entry], drawn


def test_draws_follow_the_pool_whatever_is_remembered(clip, processor, config, dataset, restricted):
    clip = clip.double()
    settings = {"max_steps": 9, "reg_schedule": "constant", "reg_weight": 5.0, "plain_caption_share": 0}
    live, drawn = run(clip, processor, config(reference_cache="none", **settings), dataset, restricted)
    cached, again = run(clip, processor, config(reference_cache="text", **settings), dataset, restricted)
    lazy = run(clip, processor, config(reference_text_cache_gib=0, **settings), dataset, restricted)
    assert drawn == again == lazy[1]
    assert cached == pytest.approx(live, rel=1e-9)
    assert lazy[0] == pytest.approx(live, rel=1e-9)
    for _, label, template in drawn:
        assert restricted.classes[template] is None or CLASS_NAMES[label] in restricted.classes[template]
    assert sum(template == 1 for *_, template in drawn) > 0.8 * len(drawn)
    assert {template for *_, template in drawn} > {1}


def test_batch_size_and_workers_do_not_change_a_draw(clip, processor, config, dataset, restricted):
    def by_sample(**settings):
        _, drawn = run(clip, processor, config(max_steps=-1, num_train_epochs=1, **settings), dataset, restricted)
        return sorted(drawn)

    assert by_sample() == by_sample(per_device_train_batch_size=3, dataloader_num_workers=1)


def test_equal_weights_change_the_stream_but_no_weights_do_not(clip, processor, config, dataset):
    plain, drawn = run(clip, processor, config(), dataset, TEMPLATES)
    unrestricted = SpuriosityPool(TEMPLATES, classes=[None, None, None], aspects=["weather", "time", "place"])
    assert run(clip, processor, config(), dataset, unrestricted) == (plain, drawn)


@pytest.mark.parametrize("cache", ["text", "none"])
def test_contexts_average_over_the_classes_a_template_is_for(clip, processor, config, dataset, restricted, cache):
    args = config(regularizer="car-ft", reg_weight=0.5, reference_cache=cache)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor, spuriosity=restricted)
    trainer.reference.prepare(torch.device("cpu"))
    contexts = trainer.reference.contexts(trainer.bank)
    with torch.no_grad():
        texts = [f"a photo of a {name} in the snow." for name in ("truck", "fern")]
        expected = trainer.encoder.encode(clip.eval(), texts=texts).mean(0)
    assert contexts.shape == (3, 32)
    torch.testing.assert_close(contexts[0], expected / expected.norm(), rtol=0, atol=1e-5)
