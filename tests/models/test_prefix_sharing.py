"""Texts that share what they begin with are encoded as if each stood alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from starft_hf.models.encoder import DualEncoder
from starft_hf.models.prefix_sharing import pack
from tests.support.families import FAMILIES, family
from tests.support.tiny import token_ids


TEXTS = [
    "a photo of an owl.",
    "a photo of an owl in the snow.",
    "a photo of a fern.",
    "a photo of a fern at night.",
    "a striped fern.",
    "a photo of an owl.",
    "x",
]


@st.composite
def sequences(draw):
    max_length = draw(st.integers(3, 12))
    texts = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=max_length), min_size=1, max_size=20))
    return texts, max_length


@given(sequences())
@settings(deadline=None)
def test_every_text_is_there_whole_and_nothing_else_is_seen(drawn):
    texts, max_length = drawn
    batch = pack(texts, [len(text) - 1 for text in texts], max_length, padding=0)
    assert token_ids(batch) == texts
    assert batch["input_ids"].shape[1] <= max_length
    for text, row, place in zip(texts, batch["text_rows"], batch["text_places"], strict=True):
        seen = batch["attention_mask"][row, 0, place]
        assert batch["position_ids"][row][seen].tolist() == list(range(len(text)))
        # What an ancestor sees is what the text's own beginning sees.
        for depth, node in enumerate(seen.nonzero().flatten()):
            assert batch["attention_mask"][row, 0, node].nonzero().flatten().tolist() == (
                seen.nonzero().flatten()[: depth + 1].tolist()
            )
    assert batch["attention_mask"].any(-1).all()
    assert (batch["input_ids"] != 0).sum() <= sum(map(len, texts))


def test_shared_beginnings_are_there_once():
    batch = pack([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 6]], [2, 3, 3], max_length=20, padding=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 6, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3]]
    assert batch["text_places"].tolist() == [2, 5, 3]


@pytest.fixture(params=[False, True], ids=["end token", "legacy end token"])
def causal_clip(request, clip, processor):
    if request.param:
        # Configurations of old name no end token, and the highest id is pooled: here, too, that of the end.
        assert processor.tokenizer.eos_token_id == max(processor.tokenizer.get_vocab().values())
        clip.config.text_config.eos_token_id = clip.text_model.eos_token_id = 2
    return clip.double()


def test_embeddings_and_gradients_are_those_of_texts_that_stand_alone(causal_clip, processor):
    packed, padded = (DualEncoder.of(causal_clip, processor, packed=value) for value in (True, False))
    assert "text_rows" in packed.encode_texts(TEXTS)
    assert "text_rows" not in padded.encode_texts(TEXTS)
    weights = torch.randn(len(TEXTS), 32, generator=torch.Generator().manual_seed(0)).double()
    results = []
    for encoder in (packed, padded):
        causal_clip.zero_grad()
        embeds = encoder.encode(causal_clip, texts=TEXTS)
        (embeds * weights).sum().backward()
        gradients = {name: value.grad.clone() for name, value in causal_clip.text_model.named_parameters()}
        results.append((embeds.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=0, atol=1e-9, msg=name)


def test_texts_are_cut_alike(clip, processor):
    clip = clip.double()
    texts = ["a photo of an owl " * 30 + ending for ending in ("here.", "there.")] + ["a fern."]
    packed, padded = (DualEncoder.of(clip, processor, packed=value) for value in (True, False))
    with torch.no_grad():
        torch.testing.assert_close(
            packed.encode(clip, texts=texts), padded.encode(clip, texts=texts), rtol=0, atol=1e-12
        )


def test_the_tower_pools_as_before_once_a_packed_batch_is_through(clip, processor):
    tokens = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        before = clip.get_text_features(**tokens).pooler_output
        DualEncoder.of(clip, processor).encode(clip, texts=TEXTS)
        assert torch.equal(clip.get_text_features(**tokens).pooler_output, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_towers_that_can_share_do(name):
    model, processor = family(name)
    assert ("text_rows" in DualEncoder.of(model, processor).encode_texts(TEXTS)) == (name == "clip")


def test_eager_attention_and_dropout_keep_texts_apart(clip, processor):
    eager = copy.deepcopy(clip)
    eager.set_attn_implementation("eager")
    assert "text_rows" not in DualEncoder.of(eager, processor).encode_texts(TEXTS)
    for layer in clip.text_model.encoder.layers:
        layer.self_attn.dropout = 0.1
    assert "text_rows" not in DualEncoder.of(clip, processor).encode_texts(TEXTS)
