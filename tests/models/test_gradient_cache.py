"""Chunked equals whole."""

import copy

import pytest
import torch

from starft_hf import StarFTTrainer
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.gradient_cache import forward_in_chunks
from starft_hf.models.modes import differs_in_training
from tests.support.families import FAMILIES
from tests.support.families import family as make
from tests.support.tiny import CHECKPOINTING


@pytest.fixture
def inputs(clip, processor):
    encode_texts = DualEncoder.of(clip, processor, packed=False).encode_texts
    texts = encode_texts(["an owl.", "a red truck.", "a violin at night.", "a fern."])
    return {"pixel_values": torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double(), **texts}


def outputs_and_gradients(model, inputs, chunk_size):
    with forward_in_chunks(model, chunk_size):
        outputs = model(**inputs)
    similarity = outputs.image_embeds @ outputs.text_embeds.T
    # Every row takes part with every other, so that a chunk's gradient depends on all chunks.
    loss = torch.logsumexp(5 * similarity, dim=(0, 1)) + similarity.square().sum()
    model.zero_grad()
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return outputs.image_embeds, outputs.text_embeds, gradients


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_outputs_and_gradients_are_those_of_the_whole_batch(clip, inputs, chunk_size):
    clip = clip.double().train()
    whole, chunked = (outputs_and_gradients(clip, inputs, size) for size in (None, chunk_size))
    for left, right in zip(whole[:2], chunked[:2], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    assert whole[2].keys() == chunked[2].keys()
    for name, gradient in whole[2].items():
        torch.testing.assert_close(gradient, chunked[2][name], rtol=0, atol=1e-10, msg=name)


def test_more_chunks_of_images_than_texts(clip, inputs):
    clip = clip.double()
    inputs = {name: value[:2] if name != "pixel_values" else value for name, value in inputs.items()}
    whole, chunked = (outputs_and_gradients(clip, inputs, size) for size in (None, 1))
    assert whole[1].shape == chunked[1].shape == (2, 32)
    for name, gradient in whole[2].items():
        torch.testing.assert_close(gradient, chunked[2][name], rtol=0, atol=1e-10, msg=name)


def test_the_forward_is_put_back_even_after_an_error(clip, inputs):
    with pytest.raises(KeyError), forward_in_chunks(clip, 2):
        raise KeyError
    assert "forward" not in clip.__dict__
    assert clip.double()(**inputs).logits_per_image.shape == (7, 4)


def test_dropout_draws_the_same_when_a_chunk_is_computed_again(clip, inputs):
    """Gradients belong to the outputs only if both passes drop the same units."""
    clip = clip.double().train()
    for layer in clip.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    weight = clip.visual_projection.weight

    def loss(seed):
        torch.manual_seed(seed)
        with forward_in_chunks(clip, 3):
            return clip(**inputs).image_embeds[:, 0].sum()

    clip.zero_grad()
    loss(0).backward()
    analytic = weight.grad[0, 0].item()
    with torch.no_grad():
        weight[0, 0] += 1e-6
        above = loss(0)
        weight[0, 0] -= 2e-6
        below = loss(0)
    assert analytic == pytest.approx((above - below).item() / 2e-6, rel=1e-4)


def test_the_forward_runs_again_chunk_by_chunk_and_only_once(clip, inputs):
    rows = []
    clip.double().vision_model.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    outputs_and_gradients(clip, inputs, 3)
    assert sorted(rows) == [2, 2, 2, 2, 3, 3]


SETTINGS = [
    {},
    {"regularizer": "kl", "reference_cache": "none"},
    {"base_loss": "cross_entropy", "reference_cache": "text"},
    {"crop_scale": None, "reference_cache": "full", "gradient_accumulation_steps": 2},
    {CHECKPOINTING: True},
    {"regularizer": "none"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_in_chunks_gives_the_weights_of_training_as_a_whole(clip, processor, config, dataset, settings):
    settings = {"reg_schedule": "constant", "reg_weight": 5.0, "max_grad_norm": 0.5, **settings}
    trainers = []
    for size in (None, 3):
        args = config(mini_batch_size=size, **settings)
        trainer = StarFTTrainer(copy.deepcopy(clip).double(), args, dataset, processing_class=processor)
        trainer.train()
        trainers.append(trainer)
    whole, chunked = trainers
    for left, right in zip(whole.state.log_history[:-1], chunked.state.log_history[:-1], strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-9)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], abs=1e-9)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, chunked.model.state_dict()[name], rtol=0, atol=1e-9, msg=name)


def test_chunks_are_computed_under_the_autocast_of_the_run(clip, processor, config, dataset):
    losses, seen = [], set()
    clip.visual_projection.register_forward_hook(
        lambda module, args, output: seen.add(output.dtype) if torch.is_grad_enabled() else None
    )
    for size in (None, 3):
        # The weight of "auto" makes of rounding in bfloat16 what is more than a percent of the loss.
        args = config(mini_batch_size=size, bf16=True, reg_weight=0.5)
        trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history[:-1]])
    assert seen == {torch.bfloat16}
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_in_chunks(family, config, dataset):
    model, processor = make(family)
    for module in model.modules():
        # Chunks draw other units to drop than the whole does.
        for name, value in vars(module).items():
            if isinstance(value, float) and (name == "p" or "drop" in name):
                vars(module)[name] = 0.0
    assert not differs_in_training(model)
    losses = []
    for size in (None, 3):
        args = config(mini_batch_size=size, max_steps=1, reference_cache="none")
        trainer = StarFTTrainer(copy.deepcopy(model).double(), args, dataset, processing_class=processor)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_images_are_computed_again_before_texts(clip, inputs):
    """Their activations are most of what a chunk needs; the gradients of the text tower do not come on top of them."""
    towers = []
    clip = clip.double().train()
    with forward_in_chunks(clip, 3):
        outputs = clip(**inputs)
    clip.visual_projection.register_forward_pre_hook(lambda module, args: towers.append("images"))
    clip.text_projection.register_forward_pre_hook(lambda module, args: towers.append("texts"))
    (outputs.image_embeds @ outputs.text_embeds.T).square().sum().backward()
    assert towers == ["images"] * 3 + ["texts"] * 3


class TogetherOnly(torch.nn.Module):
    """As models of one's own may be: a forward of images and texts is all there is."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def forward(self, **inputs):
        return self.clip(**inputs)


@pytest.mark.parametrize("num_texts", [2, 4])
def test_a_model_that_embeds_both_sides_only_together(clip, inputs, num_texts):
    inputs = {name: value[:num_texts] if name != "pixel_values" else value for name, value in inputs.items()}
    model = TogetherOnly(clip.double())
    whole, chunked = (outputs_and_gradients(model, inputs, size) for size in (None, 2))
    torch.testing.assert_close(chunked[:2], whole[:2], rtol=0, atol=1e-12)
    for name, gradient in whole[2].items():
        torch.testing.assert_close(gradient, chunked[2][name], rtol=0, atol=1e-10, msg=name)
