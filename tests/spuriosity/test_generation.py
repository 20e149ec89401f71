"""Pools written by a language model: on a loopback endpoint, and by a tiny model in this process."""

import json
import re
import time

import huggingface_hub.constants
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from starft_hf import SpuriosityPool, generate_pool
from starft_hf.spuriosity import ChatEndpoint, LocalChatModel
from starft_hf.spuriosity.backends import BackendError
from starft_hf.spuriosity.generation import prompt
from tests.support.families import family


CLASSES = ["owl", "fire_truck"]
PLACES = ["{} in the snow.", "{} on a beach.", "{} in a dense forest.", "{} beside a lake.", "{} on a city street."]
LIGHTS = ["{} at dusk.", "{} lit by candles.", "a blurry photo of a {class}.", "{} seen through fog."]


@pytest.fixture
def generate(endpoint, tmp_path):
    def run(**settings):
        defaults = {
            "domain": "birds and vehicles",
            "class_names": CLASSES,
            "aspects": ["the background"],
            "n": 4,
            "backend": ChatEndpoint("some/model", base_url=endpoint.url, timeout=5, retries=1),
            "cache_dir": tmp_path / "answers",
            "progress": False,
        }
        return generate_pool(**defaults | settings)

    return run


def asked(endpoint, request=-1):
    return endpoint.requests[request][2]["messages"][-1]["content"]


def test_good_answers_become_a_pool_with_its_provenance(generate, endpoint, tmp_path):
    endpoint.answers = [json.dumps(PLACES), json.dumps(LIGHTS)]
    pool = generate(aspects=["the background", "the light"], n=7)
    assert list(pool) == [*PLACES[:4], *LIGHTS[:3]]
    assert pool.aspects == ("the background",) * 4 + ("the light",) * 3
    assert (pool.name, pool.source) == ("birds and vehicles", "written by some/model")
    pool.save(tmp_path / "pool.json")
    kept = SpuriosityPool.load(tmp_path / "pool.json")
    assert kept == pool
    assert kept.metadata["model"] == "some/model"
    assert [part["answer"] for part in kept.metadata["rounds"]] == [json.dumps(PLACES), json.dumps(LIGHTS)]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", part["date"]) for part in kept.metadata["rounds"])
    assert kept.metadata["rounds"][0]["prompt"] == endpoint.requests[0][2]["messages"]
    assert "127.0.0.1" not in (tmp_path / "pool.json").read_text()
    path, _, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("some/model", 0)
    assert "owl, fire truck" in asked(endpoint)
    assert "the light" in asked(endpoint)
    assert prompt("system") == body["messages"][0]["content"]


def test_the_token_of_the_hub_is_not_sent_elsewhere(generate, endpoint, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    endpoint.answers = [json.dumps(PLACES)]
    generate()
    generate(domain="other", backend=ChatEndpoint(base_url=endpoint.url, api_key="own key"))
    sent = [headers.get("authorization") or headers.get("Authorization") for _, headers, _ in endpoint.requests]
    assert sent == ["Bearer none", "Bearer own key"]


def test_what_was_answered_is_not_asked_again(generate, endpoint, monkeypatch, tmp_path):
    endpoint.answers = [json.dumps(PLACES[:2]), json.dumps(PLACES)]
    pool = generate()
    number = len(endpoint.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = generate()
    assert again == pool
    assert again.metadata == pool.metadata
    assert len(endpoint.requests) == number
    for file in (tmp_path / "answers").iterdir():
        file.write_text(file.read_text()[:-20])
    with pytest.raises(BackendError, match="HF_HUB_OFFLINE"):
        generate()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    endpoint.answers = [json.dumps(PLACES[:2]), json.dumps(PLACES)]
    assert generate() == pool
    with_another = ChatEndpoint("another/model", base_url=endpoint.url)
    assert generate(backend=with_another).source == "written by another/model"


def test_what_is_missing_is_asked_for_with_the_reasons(generate, endpoint):
    first = [PLACES[0], "{} on a Monday.", "{} beside an owl.", "{} in the snow", "{} in deep snow."]
    endpoint.answers = [json.dumps(first), "", json.dumps(PLACES)]
    pool = generate()
    assert list(pool) == PLACES[:4]
    assert len(endpoint.requests) == 3
    text = asked(endpoint, 1)
    assert "- {} in the snow." in text
    assert "1 not about appearance" in text
    assert "1 names a class" in text
    assert "2 repeats another" in text
    assert pool.metadata["rejected"]["repeats another"] >= 2


def test_too_few_are_warned_of_and_asking_ends(generate, endpoint, caplog):
    endpoint.answers = [json.dumps(PLACES[:2])]
    pool = generate(max_rounds=3)
    assert list(pool) == PLACES[:2]
    assert len(endpoint.requests) == 3
    assert "2 of 4 templates were written" in caplog.text


BAD = {
    "empty": "",
    "a refusal": "I am sorry, I cannot do that.",
    "no list": '{"templates": "none"}',
    "hostile": json.dumps(["{0.__class__.__init__.__globals__} {}", "<script>alert(1)</script> {}", "{} \u202e"]),
    "brackets": "[" * 150_000,
}


@pytest.mark.parametrize("case", BAD)
def test_answers_without_a_template_end_in_an_error(generate, endpoint, case):
    endpoint.answers = [BAD[case]]
    with pytest.raises(ValueError, match="was asked 2 times, and no answer held a template"):
        generate(max_rounds=2)
    assert len(endpoint.requests) == 2


def test_an_answer_that_is_cut_off_is_used_as_far_as_it_goes(generate, endpoint):
    endpoint.answers = [json.dumps(PLACES)[:-6], json.dumps(PLACES)[:30], json.dumps(PLACES)]
    assert list(generate(n=5)) == PLACES


def test_overload_is_waited_for_and_refusal_is_not(generate, endpoint, monkeypatch):
    waited = []
    monkeypatch.setattr("starft_hf.spuriosity.backends.time.sleep", waited.append)
    endpoint.answers = [503, json.dumps(PLACES)]
    assert list(generate()) == PLACES[:4]
    assert waited == [0.5]
    endpoint.answers = [401]
    with pytest.raises(BackendError, match="401 Unauthorized"):
        generate(domain="other")
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("refusal", [400, 422])
def test_an_endpoint_that_refuses_structured_answers_is_asked_for_plain_text(generate, endpoint, caplog, refusal):
    listed = "\n".join(f"- {template}" for template in PLACES[2:])
    endpoint.answers = [json.dumps({"templates": PLACES[:2]}), refusal, listed]
    backend = ChatEndpoint(base_url=endpoint.url, retries=0)
    assert list(generate(backend=backend, n=5)) == PLACES
    assert list(generate(backend=backend, n=3, domain="other")) == PLACES[2:]
    formats = [body.get("response_format") for _, _, body in endpoint.requests]
    assert "json" in formats[0]["type"]
    assert [given is None for given in formats[:4]] == [False, False, True, True]
    assert caplog.text.count("refused response_format") == 1


FAULTS = {
    "slow": (("slow", 1.0), "timed out|no answer for"),
    "drop by drop": (("drops", 30.0), "no answer for|still arriving"),
    "without end": (("endless", None), "more than 4,194,304 bytes"),
    "compressed": (("packed", None), r"compressed \(gzip\)"),
    "no JSON": (("raw", b"<html>Welcome</html>"), "JSONDecodeError"),
    "no choices": (("raw", b'{"choices": []}'), "serves /v1/chat/completions"),
    "another API": (("raw", b'{"answer": 42}'), "serves /v1/chat/completions"),
    "broken": (500, "asked 2 times"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_endpoints_that_do_not_answer_are_told_of(generate, endpoint, monkeypatch, case):
    answer, words = FAULTS[case]
    monkeypatch.setattr("starft_hf.spuriosity.backends.time.sleep", lambda seconds: None)
    endpoint.answers = [answer]
    backend = ChatEndpoint(
        "some/model", base_url=endpoint.url, timeout=5.0 if case == "without end" else 0.2, retries=1
    )
    start = time.monotonic()
    with pytest.raises(BackendError, match=words):
        generate(backend=backend)
    assert time.monotonic() - start < 10
    accepted = [value for _, headers, _ in endpoint.requests for name, value in headers.items() if "cept-enc" in name]
    assert set(accepted) == {"identity"}


def test_an_endpoint_that_is_not_there(generate):
    with pytest.raises(BackendError, match="gave no answer"):
        generate(backend=ChatEndpoint(base_url="http://127.0.0.1:9/v1", retries=0))


def test_the_models_own_eyes_leave_out_what_is_the_same_or_too_long(generate, endpoint):
    clip, processor = family("clip")

    def embeds(*, similarity):
        endpoint.answers = [json.dumps(PLACES)]
        return generate(model=clip, processor=processor, similarity=similarity, max_rounds=1, n=5)

    assert list(embeds(similarity=1.0)) == PLACES
    few = embeds(similarity=0.2)
    assert 1 <= len(few) < len(PLACES)
    assert few.metadata["rejected"]["means the same as another to the model"] == len(PLACES) - len(few)
    short, short_processor = family("clip", max_length=40)
    endpoint.answers = [json.dumps(["{} by sea.", "{} in the middle of a long street."])]
    pool = generate(model=short, processor=short_processor, domain="short", max_rounds=1)
    assert list(pool) == ["{} by sea."]
    assert pool.metadata["rejected"] == {"too long for the text tower": 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"domain": " "}, "domain is empty"),
        ({"class_names": "owl"}, "class_names is 'owl'"),
        ({"class_names": ["owl", "owl"]}, "at least two classes"),
        ({"aspects": []}, r"aspects is \[\]"),
        ({"n": 0}, "n is 0"),
        ({"max_rounds": 0}, "max_rounds is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"similarity": 0}, "similarity is 0"),
        ({"backend": 3}, "backend is a int"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_asked(generate, endpoint, settings, words):
    with pytest.raises(ValueError, match=words):
        generate(**settings)
    assert endpoint.requests == []


def test_an_endpoint_needs_an_address_or_a_model():
    with pytest.raises(ValueError, match="id of a model"):
        ChatEndpoint()
    with pytest.raises(ValueError, match="pass one of them"):
        ChatEndpoint(base_url="http://127.0.0.1:9/v1", provider="novita")


def chat_model(pieces):
    """A Llama whose every token is followed by a certain other one, so that it says `pieces` when asked."""
    words = ["<unk>", "</s>", "<user>", "<assistant>", *pieces]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[1:4]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.chat_template = (
        "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    size = 32
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    following = [0, 1, 0, *range(4, len(words)), 1]
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(words)])
        model.lm_head.weight.zero_()
        for token, after in enumerate(following):
            model.lm_head.weight[after, token] = 5.0
    return model, fast


@pytest.fixture
def local():
    return chat_model([json.dumps(PLACES[:2])[:-1], ", ", json.dumps(PLACES[2:4])[1:]])


def test_a_chat_model_in_this_process(local, tmp_path):
    model, tokenizer = local
    model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    backend = LocalChatModel(model, tokenizer)
    settings = {"domain": "birds", "class_names": CLASSES, "aspects": ["the background"], "n": 4, "progress": False}
    pool = generate_pool(backend=backend, cache_dir=tmp_path / "one", **settings)
    assert list(pool) == PLACES[:4]
    sampled = generate_pool(backend=backend, cache_dir=tmp_path / "two", temperature=0.7, seed=5, **settings)
    again = generate_pool(backend=backend, cache_dir=tmp_path / "three", temperature=0.7, seed=5, **settings)
    assert sampled.metadata["rounds"][0]["answer"] == again.metadata["rounds"][0]["answer"]
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    by_path = generate_pool(backend=str(tmp_path / "model"), cache_dir=tmp_path / "four", **settings)
    assert by_path == pool


def test_a_model_without_a_chat_template_is_refused(local):
    model, tokenizer = local
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        LocalChatModel(model, tokenizer)
