"""A model in memory after a run in half precision, which Accelerate leaves under autocast."""

import copy

import pytest
import torch
from transformers import CLIPModel

from starft_hf import StarFTTrainer, evaluate_zero_shot, interpolate
from starft_hf.models.precision import exact_copy, keeps_autocast, without_autocast
from starft_hf.weights.export.subject import _plain
from tests.support.runs import steps


@pytest.fixture
def train(processor, config, dataset):
    def run(model, **settings):
        trainer = StarFTTrainer(model, config(**settings), dataset, processing_class=processor)
        trainer.train()
        return trainer

    return run


@pytest.fixture
def logits(processor, dataset):
    inputs = processor(images=dataset["image"][:4], text=["an owl.", "a fern."], padding=True, return_tensors="pt")

    def compute(model):
        with torch.no_grad():
            return model.eval()(**inputs).logits_per_image

    return compute


@pytest.fixture
def trained(clip, train, tmp_path):
    """A model that two runs in bf16 have trained, and the same as it is loaded."""
    for _ in range(2):
        trainer = train(clip, bf16=True, learning_rate=1e-4)
    # As a user who prepares it once more would have it.
    trainer.accelerator.prepare(clip)
    clip.save_pretrained(tmp_path / "saved")
    return clip, CLIPModel.from_pretrained(tmp_path / "saved", dtype=torch.float32)


def test_copies_of_it_compute_in_the_dtype_of_the_weights(trained, logits):
    model, loaded = trained
    assert not torch.equal(logits(model), logits(loaded))
    copied = exact_copy(model)
    assert torch.equal(logits(copied), logits(loaded))
    assert keeps_autocast(model)
    assert not keeps_autocast(copied)
    with without_autocast(model):
        assert torch.equal(logits(model), logits(loaded))
    assert not torch.equal(logits(model), logits(loaded))
    # The copy has weights of its own.
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert not torch.equal(logits(copied), logits(loaded))


def test_what_is_made_of_it_does_too(trained, logits, processor):
    model, loaded = trained
    assert torch.equal(logits(_plain(model)), logits(loaded))
    mixed = interpolate(model, loaded, alpha=0.5, processing_class=processor)
    torch.testing.assert_close(logits(mixed), logits(loaded), rtol=0, atol=1e-5)


def test_it_is_evaluated_in_the_dtype_of_its_weights(trained, processor, dataset):
    model, loaded = trained
    found, expected = (evaluate_zero_shot(one, processor, dataset, progress=False) for one in (model, loaded))
    assert found == expected
    half = evaluate_zero_shot(model, processor, dataset, dtype=torch.bfloat16, progress=False)
    assert half.loss != expected.loss
    assert keeps_autocast(model)


def test_a_later_run_in_full_precision_is_one(trained, train):
    model, loaded = trained
    again, expected = train(model), train(loaded)
    assert [entry["loss"] for entry in steps(again)] == [entry["loss"] for entry in steps(expected)]
    assert not keeps_autocast(model)


def test_as_a_reference_it_is_cached_in_the_dtype_of_its_weights(trained, clip, processor, config, dataset, tmp_path):
    rows = []
    for number, reference in enumerate(trained):
        args = config(reference_cache_dir=str(tmp_path / f"features{number}"))
        given = {"processing_class": processor, "reference_model": reference}
        trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, **given)
        trainer.setup.prepare(args.device)
        rows.append(trainer.reference.texts.all_rows())
        assert not keeps_autocast(trainer.reference.live.model)
    assert torch.equal(*rows)


def test_a_forward_that_is_the_models_own_stays(clip, logits):
    expected = logits(clip)
    forward, calls = clip.forward, []

    def own(**inputs):
        calls.append(1)
        return forward(**inputs)

    clip.forward = clip._original_forward = own
    copied = exact_copy(clip)
    assert torch.equal(logits(copied), expected)
    assert calls


@pytest.mark.parametrize("settings", [{"bf16": True}, {}], ids=str)
def test_what_is_retained_is_measured_in_one_precision(clip, processor, config, dataset, settings):
    args = config(learning_rate=0.0, max_steps=1, group_column="group", **settings)
    given = {"processing_class": processor, "zero_shot_probe": {"rows": dataset}}
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, **given)
    trainer.train()
    found = trainer.retention["rows"]
    assert found.before == found.after
