"""Adapters: the reference is the model without them, and what is saved can be used without this package."""

import copy

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.tuners import lora
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel, pipeline

from starft_hf import StarFTTrainer, load
from starft_hf.models.adapters import _STARTS, base_state, merge_and_save, with_adapter
from tests.support.families import FAMILIES, family
from tests.support.tiny import CHECKPOINTING, TINY_CLIP


ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
CONFIGS = {
    "lora": "lora",
    "lora-vision": "lora-vision",
    "lora-text": "lora-text",
    "DoRA": LoraConfig(r=4, target_modules=ATTENTION, use_dora=True),
    "LoHa": LoHaConfig(r=4, target_modules=ATTENTION),
    "IA3": IA3Config(target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"]),
    "a module beside": LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["visual_projection"]),
    "an expression for one tower": LoraConfig(r=4, target_modules=r"vision_model.*\.fc1"),
}


@pytest.fixture
def settings():
    return {"max_steps": 4, "learning_rate": 1e-2, "reg_schedule": "constant", "reg_weight": 2.0, "warmup_steps": 0}


def make(clip, processor, args, dataset, peft_config="lora", **kwargs):
    return StarFTTrainer(clip, args, dataset, processing_class=processor, peft_config=peft_config, **kwargs)


def outputs(model, processor, dataset):
    inputs = processor(images=dataset["image"][:6], text=["an owl.", "a fern."], padding=True, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(next(model.parameters()).dtype)
    with torch.no_grad():
        return model.eval()(**inputs.to(next(model.parameters()).device)).logits_per_image.cpu()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_trains_and_its_reference_stays_the_base_model(
    name, clip, processor, config, dataset, settings, tmp_path
):
    base = copy.deepcopy(clip)
    trainer = make(clip, processor, config(**settings, reference_cache="none"), dataset, copy.deepcopy(CONFIGS[name]))
    assert trainer.reference.info.kind == "adapter switched off"
    batch = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset.__getitems__(range(6))))
    trainer.reference.prepare(trainer.args.device)
    before = trainer.reference.embed(batch)
    scale = trainer.reference.logit_scale.clone()
    trainer.train()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.reference.embed(batch), strict=True))
    assert torch.equal(trainer.reference.logit_scale, scale)
    assert not torch.equal(trainer.model.logit_scale.cpu(), base.logit_scale)
    for key, value in base.state_dict().items():
        if key != "logit_scale":
            assert torch.equal(base_state(trainer.model)[key].cpu(), value), key
    assert not torch.equal(outputs(trainer.model, processor, dataset), outputs(base, processor, dataset))

    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(
        outputs(loaded, processor, dataset), outputs(trainer.model, processor, dataset), rtol=0, atol=1e-6
    )
    assert torch.equal(loaded.logit_scale, trainer.model.logit_scale.cpu())


@pytest.mark.parametrize("name", ["lora", "DoRA", "LoHa", "IA3", "a module beside"])
def test_a_merged_model_computes_what_the_adapted_one_does(name, clip, processor, config, dataset, settings, tmp_path):
    trainer = make(clip.double(), processor, config(**settings), dataset, copy.deepcopy(CONFIGS[name]))
    trainer.train()
    adapted = outputs(trainer.model, processor, dataset)
    trainer.merge_and_save(tmp_path / "merged")
    plain = CLIPModel.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    torch.testing.assert_close(outputs(plain, processor, dataset), adapted, rtol=0, atol=1e-9)
    torch.testing.assert_close(outputs(trainer.model, processor, dataset), adapted, rtol=0, atol=0)
    assert plain.state_dict().keys() == CLIPModel(clip.config).state_dict().keys()
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "merged"))
    assert len(classify(dataset[0]["image"], candidate_labels=["owl", "fern"])) == 2


def test_memory_grows_by_the_adapter_only(clip, processor, config, dataset):
    before = sum(parameter.numel() for parameter in clip.parameters())
    trainer = make(clip, processor, config(reference_cache="none"), dataset)
    adapter = sum(value.numel() for name, value in trainer.model.named_parameters() if "lora_" in name)
    assert sum(parameter.numel() for parameter in trainer.model.parameters()) == before + adapter
    assert trainer.reference.model is trainer.model
    trainable = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
    assert trainable == adapter + 1


@pytest.mark.parametrize("cache", ["none", "text", "full"])
@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_caches_change_nothing(clip, processor, config, dataset, settings, cache, base_loss):
    settings |= {"crop_scale": None, "base_loss": base_loss, "max_steps": 3}
    runs = []
    for kind in ("none", cache):
        torch.manual_seed(0)
        args = config(reference_cache=kind, **settings)
        trainer = make(copy.deepcopy(clip).double(), processor, args, dataset)
        trainer.train()
        runs.append(trainer)
    for name, value in runs[0].model.state_dict().items():
        torch.testing.assert_close(value, runs[1].model.state_dict()[name], rtol=0, atol=1e-9, msg=name)


def test_an_adapter_finds_what_full_fine_tuning_has_remembered(clip, processor, config, dataset, settings):
    """The key is that of the base weights: neither random adapter weights nor the way of training are in it."""
    settings |= {"crop_scale": None, "reference_cache": "full"}
    full = StarFTTrainer(copy.deepcopy(clip), config(**settings), dataset, processing_class=processor)
    full.train()
    for seed in (0, 1):
        torch.manual_seed(seed)
        adapted = make(copy.deepcopy(clip), processor, config(**settings, seed=seed), dataset)
        adapted.train()
        assert adapted.reference.info.forwards == 0


@pytest.mark.parametrize("settings", [{CHECKPOINTING: True}, {"mini_batch_size": 3}], ids=str)
def test_memory_savers_change_nothing(clip, processor, config, dataset, settings):
    runs = []
    for extra in ({}, settings):
        torch.manual_seed(0)
        args = config(reference_cache="none", reg_schedule="constant", **extra)
        trainer = make(copy.deepcopy(clip).double(), processor, args, dataset)
        trainer.train()
        runs.append(trainer)
    for name, value in runs[0].model.state_dict().items():
        torch.testing.assert_close(value, runs[1].model.state_dict()[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_a_run_resumes(clip, processor, config, dataset, settings, base_loss, tmp_path):
    settings |= {"base_loss": base_loss, "save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    runs = []
    for checkpoint in (None, tmp_path / "output" / "checkpoint-2"):
        torch.manual_seed(0)
        trainer = make(copy.deepcopy(clip), processor, config(**settings), dataset)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        runs.append(trainer)
    for name, value in runs[0].model.state_dict().items():
        assert torch.equal(value, runs[1].model.state_dict()[name]), name


def test_a_peft_model_may_be_given(clip, processor, config, dataset, settings):
    base = copy.deepcopy(clip)
    adapted = get_peft_model(clip, LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights=False))
    trainer = make(adapted, processor, config(**settings, reference_cache="none"), dataset, None)
    batch = trainer.data_collator(trainer.train_dataset.__getitems__(range(6)))
    images, _ = trainer.reference.embed(batch)
    pixels = trainer.encoder.normalized(batch["pixel_values"])
    with torch.no_grad():
        expected = base.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(images, torch.nn.functional.normalize(expected, dim=-1))
    trainer.train()
    with pytest.raises(ValueError, match="the model has an adapter already"):
        make(adapted, processor, config(), dataset, "lora")


@pytest.mark.parametrize("start", _STARTS)
def test_however_lora_begins_the_reference_is_the_model_as_given(clip, start):
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    adapted = with_adapter(clip, LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights=start))
    after = base_state(adapted)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_an_adapter_of_any_name_is_saved_where_everything_looks_for_it(
    clip, processor, config, dataset, settings, tmp_path
):
    adapted = get_peft_model(copy.deepcopy(clip), LoraConfig(r=4, target_modules=ATTENTION), adapter_name="birds")
    kept = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    args = config(**settings, **kept, load_best_model_at_end=True, metric_for_best_model="loss")
    trainer = make(adapted, processor, args, dataset, None, eval_dataset=dataset)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "output"
    loaded = PeftModel.from_pretrained(copy.deepcopy(clip), folder)
    trained = {name.replace(".birds.", ".default."): value for name, value in trainer.model.state_dict().items()}
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[name].cpu()), name
    assert load(folder).class_names == trainer.class_names
    with pytest.raises(ValueError, match=r"output' holds an adapter, not a model; merge it \(starft merge\)"):
        make(str(folder), processor, args, dataset, None)
    best = load_file(f"{trainer.state.best_model_checkpoint}/adapter_model.safetensors")
    assert torch.equal(best["base_model.model.logit_scale"], trainer.model.logit_scale.cpu())

    again = get_peft_model(copy.deepcopy(clip), LoraConfig(r=4, target_modules=ATTENTION), adapter_name="birds")
    resumed = make(again, processor, args, dataset, None, eval_dataset=dataset)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


def test_adapters_that_could_not_be_saved_are_refused_at_the_start(clip, processor, config, dataset):
    lora = LoraConfig(r=4, target_modules=ATTENTION)
    injected = inject_adapter_in_model(lora, copy.deepcopy(clip), "birds")
    with pytest.raises(ValueError, match="the CLIPModel has layers of a PEFT adapter inside, but is not a PeftModel"):
        make(injected, processor, config(), dataset, None)
    several = get_peft_model(copy.deepcopy(clip), lora)
    trainer = make(several, processor, config(), dataset, None)
    several.add_adapter("birds", lora)
    for begin in (trainer.train, lambda: make(several, processor, config(), dataset, None)):
        with pytest.raises(ValueError, match=r"the adapters 'default', 'birds', .* model.delete_adapter\('birds'\)"):
            begin()


REFUSED = {
    "task_type": (LoraConfig(task_type="FEATURE_EXTRACTION", target_modules=ATTENTION), "leave task_type out"),
    "bias": (LoraConfig(bias="lora_only", target_modules=ATTENTION), "bias='lora_only', which trains biases"),
    "base weights": (LoraConfig(target_modules=ATTENTION, init_lora_weights="pissa"), "no longer be the reference"),
    "nothing matched": (LoraConfig(target_modules=["qproj"]), r"matches nothing in CLIPModel; .*q_proj"),
    "one tower": (LoraConfig(target_modules=["visual_projection", "patch_embedding"]), "stay as it is"),
    "no target": (LoraConfig(), "has no default for CLIPModel"),
    "logit_scale": (LoraConfig(target_modules=ATTENTION, modules_to_save=["logit_scale"]), "trained and saved"),
    "prompts": (PromptTuningConfig(num_virtual_tokens=2), "virtual tokens"),
    "a preset that is none": ("lora-visio", "Did you mean 'lora-vision'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(clip, processor, config, dataset, case):
    peft_config, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason):
        make(clip, processor, config(), dataset, copy.deepcopy(peft_config))


def test_a_reference_in_another_precision_is_refused(clip, processor, config, dataset):
    with pytest.raises(ValueError, match="needs a second copy of the weights"):
        make(clip, processor, config(reference_dtype="bfloat16"), dataset)


def test_there_is_nothing_to_merge_without_an_adapter(clip, processor, config, dataset, tmp_path):
    with pytest.raises(ValueError, match="no adapter to merge"):
        make(clip, processor, config(), dataset, None).merge_and_save(tmp_path)


class Int8Weight(nn.Parameter):
    """Integers, whose copies want gradients, as a new parameter does by default."""

    def __new__(cls, data):
        return super().__new__(cls, data, requires_grad=False)

    def __deepcopy__(self, memo):
        return nn.Parameter(self.data.clone())


class Int8Linear(nn.Linear):
    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.bias, self.weight = linear.bias, None
        self.quantize(linear.weight.detach())

    def quantize(self, weight):
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        quantized = (weight / self.scale).round().to(torch.int8)
        if self.weight is None:
            self.weight = Int8Weight(quantized)
        else:
            self.weight.data.copy_(quantized)

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.scale * self.weight, self.bias)


class Int8Lora(lora.Linear):
    def merge(self, safe_merge=False, adapter_names=None):
        base = self.get_base_layer()
        base.quantize(base.scale * base.weight + self.get_delta_weight("default"))
        self.merged_adapters.append("default")


def test_an_adapter_of_integer_weights_is_merged_as_peft_merges_it(clip, processor, dataset, tmp_path):
    for module in list(clip.modules()):
        for name, child in list(module.named_children()):
            if name in ATTENTION:
                setattr(module, name, Int8Linear(child))
    config = LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights=False)
    config._register_custom_module({Int8Linear: Int8Lora})
    model = get_peft_model(clip, config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Int8Lora):
                module.lora_B["default"].weight.mul_(10)
    before = outputs(model, processor, dataset)
    merge_and_save(model, processor, tmp_path / "merged")
    assert torch.equal(outputs(model, processor, dataset), before)
    merged = model.merge_and_unload()
    torch.testing.assert_close(outputs(merged, processor, dataset), before, rtol=0.1, atol=0.1)
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert {str(value.dtype) for value in saved.values()} == {"torch.float32", "torch.int8"}
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in saved.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_evaluates_saves_and_reloads(name, config, dataset, tmp_path):
    model, processor = family(name)
    base = copy.deepcopy(model)
    trainer = make(model, processor, config(max_steps=3), dataset, eval_dataset=dataset)
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_worst_group_accuracy"] <= 1
    for tower in ("vision_model", "text_model"):
        # They start at 0.
        assert any(value.any() for key, value in trainer.model.named_parameters() if tower in key and "lora_B" in key)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    trained = trainer.model.state_dict()
    for key, value in loaded.state_dict().items():
        # A count of batches that nothing reads.
        assert key.endswith("num_batches_tracked") or torch.equal(value, trained[key].cpu()), key
