import copy
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from starft_hf import SpuriosityPool
from starft_hf.data.captions import CaptionBank
from starft_hf.data.collator import StarFTCollator
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference import CachedReference, FrozenReference
from starft_hf.reference.images import CachedImages
from starft_hf.reference.live import AdapterReference
from starft_hf.reference.texts import CachedTexts, LazyTexts
from starft_hf.utils.store import FeatureStore
from tests.support.tiny import CLASS_NAMES, images_of


CPU = torch.device("cpu")


POOL = SpuriosityPool(["{} in the snow.", "{} at night.", "a striped {class}."])


@pytest.fixture
def encoder(clip, processor):
    return DualEncoder.of(clip, processor)


@pytest.fixture
def bank():
    # One name twice, as in ImageNet: two labels, one caption.
    return CaptionBank([*CLASS_NAMES, "owl"], ["a photo of a {}.", "a drawing of a {}."], POOL)


@pytest.fixture
def batch(encoder, bank):
    drawn = [(0, 0, 1), (4, 0, 1), (2, 1, 2), (3, 1, 0), (0, 1, 1)]
    examples = [
        {
            "image": {"pixel_values": torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(row))},
            "sample": row,
            "label": draw[0],
            "caption": bank.caption(*draw[:2]),
            "spurious_caption": bank.spurious_caption(*draw),
            "spurious_id": bank.spurious_id(*draw),
        }
        for row, draw in enumerate(drawn)
    ]
    return StarFTCollator(encoder.encode_texts)(examples)


def test_a_batch_holds_every_text_once(batch):
    assert len(batch["text_rows"]) == len(batch["text_places"]) == 8
    assert batch["spurious_rows"][0] == batch["spurious_rows"][1]
    assert batch["caption_rows"][0] == batch["caption_rows"][1]
    assert len(set(batch["spurious_ids"].tolist())) == 5


def test_ids_are_the_order_of_the_captions(bank):
    captions = list(bank.spurious_captions())
    assert len(captions) == 5 * 2 * 3
    for label in range(5):
        for template in range(2):
            for spurious in range(3):
                assert captions[bank.spurious_id(label, template, spurious)] == bank.spurious_caption(
                    label, template, spurious
                )


def cached_texts(clip, encoder, bank, folder, chunk_size=256):
    return CachedReference(
        FrozenReference(clip, encoder), CachedTexts(bank, FeatureStore(folder), chunk_size, progress=False), None
    )


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_cached_texts_are_recomputed_ones(clip, encoder, bank, batch, chunk_size, tmp_path):
    clip = clip.double()
    frozen = FrozenReference(clip, encoder)
    cached = cached_texts(clip, encoder, bank, tmp_path, chunk_size)
    for reference in (frozen, cached):
        reference.prepare(CPU)
    for left, right in zip(frozen.embed(batch), cached.embed(batch), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
        assert left.shape == (5, 32)
        assert not right.requires_grad
    assert torch.equal(frozen.logit_scale, cached.logit_scale)


def test_no_caption_is_encoded_twice(clip, encoder, bank, tmp_path):
    cached = cached_texts(clip, encoder, bank, tmp_path, chunk_size=5)
    for _ in range(2):
        cached.prepare(CPU)
    # 4 distinct names x 2 templates x 2, and the striped ones, which have no caption template in them.
    assert cached.info.rows == 4 * 2 * 2 + 4
    assert cached.info.forwards == 4
    assert cached.info.bytes == cached.info.rows * 32 * 4
    assert cached.info.where.startswith(str(tmp_path))
    assert "20 rows" in repr(cached)


def test_a_second_run_encodes_no_caption(clip, encoder, bank, batch, tmp_path):
    first, second = (cached_texts(clip, encoder, bank, tmp_path) for _ in range(2))
    first.prepare(CPU)
    second.prepare(CPU)
    assert second.info.forwards == 0
    assert torch.equal(first.embed(batch)[1], second.embed(batch)[1])


@pytest.mark.parametrize("limit", [0, 3 * 32 * 4, 10**9])
def test_lazy_texts_are_recomputed_ones_and_respect_their_limit(clip, encoder, bank, batch, limit):
    lazy = CachedReference(FrozenReference(clip, encoder), LazyTexts(bank, limit), None)
    lazy.prepare(CPU)
    frozen = FrozenReference(clip, encoder)
    for _ in range(2):
        torch.testing.assert_close(lazy.embed(batch)[1], frozen.embed(batch)[1])
    assert lazy.info.bytes <= limit
    # Images once per batch, and the texts of the first batch; of the second as well where they were not cached.
    assert lazy.info.forwards == 2 + (1 if limit == 10**9 else 2)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_reference_on_another_device_says_how_to_prepare_it(clip, encoder, bank, batch, tmp_path, adapted):
    elsewhere = {**batch, "pixel_values": batch["pixel_values"].to("meta")}
    model = get_peft_model(clip, LoraConfig(target_modules=["q_proj"])) if adapted else clip
    live = (AdapterReference if adapted else FrozenReference)(model, encoder)
    cached = CachedReference(live, CachedTexts(bank, FeatureStore(tmp_path), progress=False), None)
    for embed in (live.embed, live.embed_images, cached.embed):
        with pytest.raises(RuntimeError, match=r"call trainer.setup.prepare\(trainer.args.device\)"):
            embed(elsewhere)


def test_reduced_precision_is_near_and_says_that_it_is_not_the_model(clip, encoder, batch):
    exact, reduced = FrozenReference(clip, encoder), FrozenReference(clip, encoder, torch.bfloat16)
    for left, right in zip(exact.embed(batch), reduced.embed(batch), strict=True):
        assert right.dtype == torch.float32
        torch.testing.assert_close(left, right, rtol=0, atol=0.02)
        assert not torch.equal(left, right)
    assert torch.equal(exact.logit_scale, reduced.logit_scale)
    assert exact.equals(clip)
    assert not reduced.equals(clip)


def test_references_leave_the_generators_and_the_model_alone(clip, encoder, bank, batch, dataset, tmp_path):
    clip.train()
    before = copy.deepcopy(clip.state_dict())
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    images = CachedImages(images_of(dataset, encoder), FeatureStore(tmp_path), progress=False)
    texts = CachedTexts(bank, FeatureStore(tmp_path), progress=False)
    for parts in ((None, None), (texts, None), (texts, images)):
        live = FrozenReference(clip, encoder)
        reference = CachedReference(live, *parts) if any(parts) else live
        reference.prepare(CPU)
        reference.embed(batch)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert clip.training
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())


def test_a_reference_knows_when_the_model_has_left_it(clip, encoder):
    reference = FrozenReference(clip, encoder)
    assert reference.equals(clip)
    with torch.no_grad():
        clip.logit_scale.add_(1e-6)
    assert not reference.equals(clip)


def test_dropout_makes_a_model_differ_from_its_reference(clip, encoder):
    clip.vision_model.encoder.layers[0].self_attn.dropout = 0.1
    assert not FrozenReference(clip, encoder).equals(clip)
