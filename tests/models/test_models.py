import pytest
import torch
from transformers import BertConfig, BertModel, CLIPImageProcessor, CLIPProcessor, ViTConfig, ViTModel

from starft_hf import StarFTTrainer
from starft_hf.models.encoder import DualEncoder, logit_scale_of
from starft_hf.models.families import family_of
from starft_hf.models.gradient_cache import embeds_apart
from starft_hf.models.modes import evaluation_mode
from tests.support.families import FAMILIES, family, letter_tokenizer
from tests.support.tiny import TINY_CLIP, make_dataset


TEXTS = ["a photo of a dog.", "a photo of a dog in the snow, which is a good deal longer."]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_embedded_as_its_own_forward_does(name):
    model, processor = family(name, torch.float64)
    encoder = DualEncoder.of(model, processor)
    images = processor.image_processor(images=make_dataset(2)["image"][:], return_tensors="pt")
    tokens = processor.tokenizer(TEXTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        pixels = {key: value.double() if value.is_floating_point() else value for key, value in images.items()}
        outputs = model(**pixels, **tokens)
        normalized = torch.nn.functional.normalize
        torch.testing.assert_close(
            encoder.encode(model, images=images), normalized(outputs.image_embeds), rtol=0, atol=1e-12
        )
        # Padded to the longest text here, to the full context there.
        torch.testing.assert_close(
            encoder.encode(model, texts=TEXTS), normalized(outputs.text_embeds), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_embedded_without_the_image_tower_where_a_model_can(name):
    model, processor = family(name)
    encoder, images = DualEncoder.of(model, processor), []
    getattr(model, family_of(model).vision_tower).register_forward_hook(lambda *_: images.append(1))
    encoder.encode(model, texts=TEXTS)
    assert bool(images) == (not embeds_apart(model))
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_evaluates(name, config):
    model, processor = family(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = StarFTTrainer(model, config(), make_dataset(), make_dataset(12, seed=1), processing_class=processor)
    trainer.train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_worst_group_accuracy"] <= metrics["eval_accuracy"] <= 1
    moved = {
        key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value.cpu(), before[key])
    }
    assert {"text_model", "vision_model"} <= moved
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())


def test_the_temperature_is_exponentiated_and_keeps_its_gradient(clip):
    scale = logit_scale_of(clip)
    assert scale.item() == pytest.approx(clip.logit_scale.exp().item())
    scale.backward()
    assert clip.logit_scale.grad is not None


def test_evaluation_mode_is_left_as_it_was_entered(clip):
    clip.train()
    with evaluation_mode(clip):
        assert not clip.training
        assert not torch.is_grad_enabled()
    assert clip.training


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        (lambda: torch.nn.Linear(2, 2), "pixel_values"),
        (lambda: BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)), "pixel_values"),
        (lambda: ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)), "input_ids"),
    ],
    ids=["linear", "bert", "vit"],
)
def test_what_is_no_dual_encoder_is_refused(model, missing, processor, config, dataset):
    with pytest.raises(ValueError, match=f"not a dual encoder: missing .*{missing}"):
        StarFTTrainer(model(), config(), dataset, processing_class=processor)


def test_a_processor_of_another_model_is_refused(clip, processor, config, dataset):
    larger = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels, the model takes 16"):
        StarFTTrainer(clip, config(), dataset, processing_class=CLIPProcessor(larger, processor.tokenizer))
    letters = CLIPProcessor(processor.image_processor, letter_tokenizer())
    with pytest.raises(ValueError, match="ends texts with token"):
        StarFTTrainer(clip, config(), dataset, processing_class=letters)
    with pytest.raises(ValueError, match="whole processor"):
        StarFTTrainer(clip, config(), dataset, processing_class=processor.tokenizer)
    small, _ = family("clip")
    with pytest.raises(ValueError, match="300 entries"):
        StarFTTrainer(small, config(), dataset, processing_class=processor)


def test_a_model_from_nowhere_needs_a_processor(config, dataset):
    model, _ = family("clip")
    with pytest.raises(ValueError, match="pass processing_class"):
        StarFTTrainer(model, config(), dataset)


def hub_cache(root, repo):
    """A Hub cache that holds the tiny model as `repo`, as if it had been downloaded."""
    folder = root / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / ("0" * 40)).symlink_to(TINY_CLIP)


@pytest.mark.parametrize("how", ["hub id", "path", "string path", "loaded"])
def test_the_model_may_be_an_id_a_path_or_loaded(how, clip, config, dataset, tmp_path, monkeypatch):
    if how == "hub id":
        hub_cache(tmp_path / "hub", "someone/tiny-clip")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = {"hub id": "someone/tiny-clip", "path": TINY_CLIP, "string path": str(TINY_CLIP), "loaded": clip}[how]
    trainer = StarFTTrainer(model, config(), dataset)
    trainer.train()
    assert trainer.model.dtype == torch.float32
    assert trainer.processing_class.tokenizer.eos_token_id == 299


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_padded_and_truncated_on_the_right(name):
    model, processor = family(name)
    processor.tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match=r"truncation_side='left': .*processor.tokenizer.truncation_side = 'right'"):
        DualEncoder.of(model, processor)
    processor.tokenizer.truncation_side = "right"
    processor.tokenizer.padding_side = "left"
    if name.startswith("siglip"):
        # All texts have one length, whose padding the tower was trained with.
        encode = DualEncoder.of(model, processor).encode_texts
        assert encode(["owl"])["input_ids"].equal(encode(["owl", "a long text"])["input_ids"][:1])
    else:
        with pytest.raises(ValueError, match=r"padding_side='left': .*processor.tokenizer.padding_side = 'right'"):
            DualEncoder.of(model, processor)
