"""`VisionTextDualEncoderModel` of towers of many types."""

import copy
import re

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from starft_hf import StarFTTrainer, evaluate_zero_shot, load
from starft_hf.models.adapters import resolve_peft_config
from starft_hf.models.encoder import DualEncoder
from tests.support.families import TEXT_TOWERS, VISION_TOWERS, family, towers
from tests.support.tiny import CHECKPOINTING


PAIRS = [
    *(("vit", "bert"), ("clip_vision_model", "roberta"), ("efficientnet", "bert"), ("convnext", "roberta")),
    *(("resnet", "distilbert"), ("swin", "bert")),
]
TEXTS = ["an owl.", "a photo of an owl in the snow, which is longer."]
RUN = {"regularizer": "kl", "reg_schedule": "constant", "reg_weight": 5.0, "warmup_steps": 0, "learning_rate": 1e-2}


def test_every_tower_is_tested():
    assert {part for pair in PAIRS for part in pair} == {*VISION_TOWERS, *TEXT_TOWERS}


@pytest.mark.parametrize("peft_config", [None, "lora"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_towers_train_and_what_is_saved_is_loaded_by_its_path(pair, peft_config, config, dataset, tmp_path):
    base, processor = towers(*pair)
    for part in (base, processor):
        part.save_pretrained(tmp_path / "base")
    args = config(**RUN, eval_strategy="steps", eval_steps=2)
    trainer = StarFTTrainer(str(tmp_path / "base"), args, dataset, dataset, peft_config=peft_config)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reg_loss" in entry]
    assert log[0]["reg_loss"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["reg_loss"] > 0
    trained = {name for name, value in trainer.model.named_parameters() if value.grad is not None or value.any()}
    for tower in ("vision_model", "text_model"):
        # They start at 0.
        assert peft_config is None or any(tower in name and "lora_B" in name for name in trained)
    trainer.save_model(str(tmp_path / "saved"))
    accuracy = trainer.evaluate()["eval_accuracy"]
    assert evaluate_zero_shot(trainer.model, processor, dataset, progress=False).accuracy == accuracy
    classifier = load(tmp_path / "saved")
    assert [prediction.label for prediction in classifier(dataset["image"][:6])]
    images = processor.image_processor(images=dataset["image"][:4], return_tensors="pt")
    encoder = DualEncoder.of(trainer.model, processor)
    trainer.model.eval()
    with torch.no_grad():
        for inputs in ({"images": images}, {"texts": TEXTS}):
            found = classifier.encoder.encode(classifier.model, **inputs)
            torch.testing.assert_close(found, encoder.encode(trainer.model, **inputs), rtol=0, atol=1e-5)
    if peft_config is None:
        again = StarFTTrainer(str(tmp_path / "saved"), config(**RUN, max_steps=1), dataset)
        again.train()


@pytest.mark.parametrize("pair", [("vit", "distilbert"), ("convnext", "roberta"), ("swin", "bert")], ids="-".join)
def test_caches_chunks_and_checkpointing_change_nothing(pair, config, dataset):
    model, processor = towers(*pair, torch.float64)
    runs = []
    for way in (
        {"reference_cache": "none"},
        {"reference_cache": "full"},
        {"mini_batch_size": 3},
        {CHECKPOINTING: True},
    ):
        args = config(**RUN, max_steps=2, crop_scale=None, **way)
        trainer = StarFTTrainer(copy.deepcopy(model), args, dataset, processing_class=processor)
        trainer.train()
        runs.append(trainer.model.state_dict())
    for other in runs[1:]:
        for name, value in runs[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("make", [lambda: towers("vit", "bert"), lambda: family("altclip")], ids=["vit", "altclip"])
def test_checkpoints_with_weights_by_former_names_are_resumed_from(make, config, dataset, tmp_path):
    """Transformers saves these by other names than the model has, and Trainer would skip them."""
    model, processor = make()
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    args = config(**RUN | steps, load_best_model_at_end=True, metric_for_best_model="ece")
    trainer = StarFTTrainer(copy.deepcopy(model), args, dataset, dataset, processing_class=processor)
    trainer.train()
    best = AutoModel.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())
    last = AutoModel.from_pretrained(tmp_path / "output" / "checkpoint-4").state_dict()
    args = config(**RUN | steps | {"eval_strategy": "no"}, ignore_mismatched_settings=True)
    resumed = StarFTTrainer(copy.deepcopy(model), args, dataset, dataset, processing_class=processor)
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    assert all(torch.equal(value, last[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize("text", TEXT_TOWERS)
def test_a_text_is_embedded_alike_beside_any_other(text):
    model, processor = towers("vit", text, torch.float64)
    processor.tokenizer.model_input_names = ["input_ids", "attention_mask", "token_type_ids"]
    encoder = DualEncoder.of(model, processor)
    encoded = encoder.encode_texts(TEXTS)
    assert "text_rows" not in encoded
    assert "token_type_ids" in encoded
    alone = torch.cat([encoder.encode(model, texts=[text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(model, texts=TEXTS), alone, rtol=0, atol=1e-12)
    states = model.text_model(**processor.tokenizer(TEXTS[:1], return_tensors="pt")).last_hidden_state[:, 0]
    if text == "distilbert":
        own = nn.functional.normalize(model.text_projection(states), dim=-1)
        torch.testing.assert_close(alone[:1], own, rtol=0, atol=1e-12)


def test_positions_that_count_from_the_padding_token(config, dataset):
    model, processor = towers("vit", "roberta", max_length=40)
    # As tokenizers without this setting have it.
    processor.tokenizer.model_max_length = 10**30
    encoder = DualEncoder.of(model, processor)
    assert encoder.encode_texts.max_length == 40
    long = "a photo of an owl in the snow at night, far away."
    assert encoder.encode_texts([long])["input_ids"].shape == (1, 40)
    assert torch.isfinite(encoder.encode(model, texts=[long])).all()
    processor.tokenizer.pad_token = "<x>"
    with pytest.raises(ValueError, match="its tokenizer pads with token 2, the model with 0"):
        StarFTTrainer(model, config(), dataset, processing_class=processor)


@pytest.mark.parametrize(("vision", "takes"), [("vit", False), ("swin", True), ("convnext", True), ("resnet", True)])
def test_images_have_a_size_that_the_tower_takes(vision, takes):
    model, processor = towers(vision, "bert")
    processor.image_processor.size = {"shortest_edge": 48}
    processor.image_processor.crop_size = {"height": 48, "width": 48}
    if takes:
        assert DualEncoder.of(model, processor).blank_image()["pixel_values"].shape[-1] == 48
        return
    with pytest.raises(ValueError, match=r"images of \(48, 48\) pixels, the model takes 16"):
        DualEncoder.of(model, processor)


def of_text_tower(config, tower=None):
    """A model with a text tower of this configuration, or this one."""
    vision = towers("vit", "bert")[0].vision_model
    both = VisionTextDualEncoderConfig.from_vision_text_configs(vision.config, config, projection_dim=24)
    return VisionTextDualEncoderModel(both, vision, AutoModel.from_config(config) if tower is None else tower)


def test_towers_that_pool_nothing_are_refused(config, dataset):
    processor = towers("vit", "bert")[1]
    size = {"vocab_size": len(processor.tokenizer), "bos_token_id": 1, "eos_token_id": 1}
    causal = of_text_tower(GPT2Config(n_embd=32, n_layer=1, n_head=2, **size))
    with pytest.raises(ValueError, match=r"cannot embed a blank image and a text.*as `pooler_output`"):
        StarFTTrainer(causal, config(), dataset, processing_class=processor)
    bert = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(processor.tokenizer))
    bare = of_text_tower(bert, BertModel(bert, add_pooling_layer=False))
    with pytest.raises(ValueError, match=r"text_model is a BertModel with add_pooling_layer=False.*random pooler"):
        StarFTTrainer(bare, config(), dataset, processing_class=processor)


TARGETS = {
    "vit": "q_proj",
    "swin": "q_proj",
    "clip_vision_model": "out_proj",
    "efficientnet": "expand_conv",
    "convnext": "pwconv1",
    "resnet": r"layer\.0\.convolution",
    "bert": "query",
    "roberta": "query",
    "distilbert": "q_lin",
}


@pytest.mark.parametrize("preset", ["lora", "lora-vision", "lora-text"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_presets_adapt_the_towers_they_name(pair, preset):
    model, _ = towers(*pair)
    pattern = resolve_peft_config(preset, model).target_modules
    found = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    for tower, kind, part in zip(("vision_model", "text_model"), pair, ("vision", "text"), strict=True):
        is_adapted = any(re.search(rf"^{tower}\..*{TARGETS[kind]}$", name) for name in found)
        assert is_adapted is (preset in ("lora", f"lora-{part}"))
    # Neither pixels, nor poolers, nor the projections of the model.
    assert not [name for name in found if re.search("embed|pooler|_projection$|depthwise|dwconv|squeeze", name)]


class PaddedConv(nn.Conv2d):
    """As of towers whose convolutions pad by the size of the image."""

    def __init__(self, *args, image_size=None, **kwargs):
        assert image_size is not None
        super().__init__(*args, **kwargs)


def test_layers_that_peft_cannot_adapt_are_an_error_and_leave_the_model_as_it_was(config, dataset):
    model, processor = towers("resnet", "bert")
    for module in list(model.vision_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                own = PaddedConv(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,
                    child.stride,
                    child.padding,
                    image_size=16,
                )
                setattr(module, name, own)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match="the vision_model, a ResNetModel, has only PaddedConv; pass a LoraConfig"):
        StarFTTrainer(model, config(), dataset, processing_class=processor, peft_config="lora")
    lora = resolve_peft_config("lora-text", model)
    lora.target_modules = ["query", "convolution"]
    with pytest.raises(ValueError, match=r"PEFT cannot put a LoraConfig into the .*AssertionError"):
        StarFTTrainer(model, config(), dataset, processing_class=processor, peft_config=lora)
    assert [name for name, _ in model.named_modules()] == names
    trainer = StarFTTrainer(model, config(), dataset, processing_class=processor, peft_config="lora-text")
    assert isinstance(trainer.model, PeftModel)


def test_weights_named_as_those_of_an_adapter_are_refused(config, dataset):
    model, processor = towers("vit", "bert")
    model.vision_model.lora_scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"contain 'lora_', such as 'vision_model\.lora_scale'"):
        StarFTTrainer(model, config(), dataset, processing_class=processor, peft_config="lora")


def test_checkpointing_without_a_layer_that_can_is_refused_at_the_start(config, dataset):
    model, processor = towers("resnet", "bert")
    for part in model.text_model.modules():
        vars(part)["gradient_checkpointing"] = None
    args = config(**{CHECKPOINTING: True})
    with pytest.raises(ValueError, match="no layers of the VisionTextDualEncoderModel can be computed again"):
        StarFTTrainer(model, args, dataset, processing_class=processor)
