"""What is trained, and in which dtype, is what the run is about, however the model and the optimizer came."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from starft_hf import StarFTTrainer
from tests.support.runs import steps
from tests.support.tiny import TINY_CLIP, make_dataset


LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2}


@pytest.fixture
def train(processor, config, dataset):
    def run(model, trainer=None, **settings):
        made = StarFTTrainer(model, config(**settings), dataset, processing_class=processor, **trainer or {})
        made.train()
        return made

    return run


def moved(trainer, before):
    return sorted(name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_trains_as_the_same_model_in_float32(clip, train, caplog, dtype):
    half = train(copy.deepcopy(clip).to(dtype))
    assert "converted to float32" in caplog.text
    single = train(clip.to(dtype).float())
    assert {value.dtype for value in half.model.parameters()} == {torch.float32}
    assert steps(half) == steps(single)


@pytest.mark.parametrize("as_given", [True, False])
def test_a_half_precision_base_under_an_adapter_stays_and_the_adapter_does_not(clip, train, as_given):
    model, settings = clip.to(torch.bfloat16), {"bf16": True}
    if as_given:
        model = get_peft_model(model, LoraConfig(**LORA), autocast_adapter_dtype=False)
        trainer = train(model, **settings)
    else:
        trainer = train(model, {"peft_config": LoraConfig(**LORA)}, **settings)
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    assert {value.dtype for value in trained} == {torch.float32}
    frozen = {value.dtype for value in trainer.model.parameters() if not value.requires_grad}
    assert frozen == {torch.bfloat16}


def test_whole_modules_of_a_half_precision_base_are_refused(clip, train):
    adapter = LoraConfig(**LORA, modules_to_save=["visual_projection"])
    with pytest.raises(ValueError, match=r"modules_to_save .*bfloat16.*with dtype=torch\.float32"):
        train(clip.to(torch.bfloat16), {"peft_config": adapter})


def test_a_wider_model_stays_as_it_is(clip, train):
    assert {value.dtype for value in train(clip.double()).model.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_evaluation_in_half_precision_does_not_change_the_model(clip, processor, config, dataset, dtype):
    def losses(**settings):
        args = config(**settings)
        trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, make_dataset(8), processing_class=processor)
        trainer.evaluate()
        trainer.train()
        trainer.predict(make_dataset(8))
        assert {value.dtype for value in trainer.model.parameters()} == {torch.float32}
        assert (args.bf16_full_eval, args.fp16_full_eval) == (dtype in settings, False) or settings
        return [step["loss"] for step in steps(trainer)]

    assert losses(**{f"{dtype}_full_eval": True}) == losses()


def test_evaluation_in_half_precision_is_one(clip, processor, config, dataset):
    def logits(**settings):
        trainer = StarFTTrainer(clip, config(**settings), dataset, processing_class=processor)
        return torch.tensor(trainer.predict(make_dataset(8)).predictions)

    half, single = logits(bf16_full_eval=True), logits()
    assert 1e-4 < (half - single).abs().max() < 1


def test_a_frozen_adapter_is_refused_with_the_line_that_repairs_it(clip, train, tmp_path):
    get_peft_model(copy.deepcopy(clip), LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    frozen = PeftModel.from_pretrained(copy.deepcopy(clip), tmp_path / "adapter")
    for regularizer in ("none", "star"):
        with pytest.raises(ValueError, match="is_trainable=True"):
            train(frozen, regularizer=regularizer)
    repaired = PeftModel.from_pretrained(clip, tmp_path / "adapter", is_trainable=True)
    before = copy.deepcopy(repaired.state_dict())
    assert any("lora_B" in name for name in moved(train(repaired), before))


def test_base_weights_that_are_trained_under_an_adapter_are_refused(clip, train):
    model = get_peft_model(clip, LoraConfig(**LORA))
    model.base_model.model.visual_projection.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 base weights .*visual_projection.*would change the reference"):
        train(model)


@pytest.mark.parametrize("regularizer", ["none", "star"])
def test_parts_of_an_adapter_that_are_frozen_stay_so(clip, train, regularizer):
    model = get_peft_model(clip, LoraConfig(**LORA))
    for name, value in model.named_parameters():
        if "lora_A" in name or "text_model" in name:
            value.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    names = moved(train(model, regularizer=regularizer), before)
    assert names
    assert all("logit_scale" in name or ("vision_model" in name and "lora_B" in name) for name in names)


def test_a_frozen_model_is_refused(clip, train):
    clip.requires_grad_(False)
    with pytest.raises(ValueError, match=r"so nothing would be trained.*requires_grad_\(True\)"):
        train(clip)
    clip.logit_scale.requires_grad_(True)
    with pytest.raises(ValueError, match="only the temperature would be trained"):
        train(clip)


def test_a_frozen_model_with_a_head_and_a_frozen_tower_are_the_users_choice(clip, train):
    clip.vision_model.requires_grad_(False)
    before = copy.deepcopy(clip.state_dict())
    names = moved(train(copy.deepcopy(clip)), before)
    assert names
    assert not any(name.startswith("vision_model") for name in names)
    clip.requires_grad_(False)
    head = train(clip, base_loss="cross_entropy", regularizer="none").head
    assert head.weight.grad is not None or head.weight.requires_grad


def test_models_that_are_frozen_after_the_constructor_are_refused_before_the_first_step(
    clip, processor, config, dataset
):
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing would be trained"):
        trainer.train()


@pytest.mark.parametrize("added", ["adapter", "head"])
def test_optimizers_of_other_parameters_are_refused(clip, train, added):
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3)
    optimizers = {"optimizers": (optimizer, None)}
    settings = {"base_loss": "cross_entropy", "regularizer": "none"} if added == "head" else {}
    more = {"peft_config": "lora"} if added == "adapter" else {}
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs"):
        train(clip, optimizers | more, **settings)


def test_optimizers_of_the_right_parameters_and_their_schedulers(clip, train):
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3)
    other = torch.optim.AdamW(copy.deepcopy(clip).parameters(), lr=1e-3)
    before = copy.deepcopy(clip.state_dict())
    for foreign in ((optimizer, torch.optim.lr_scheduler.ConstantLR(other)), (other, None)):
        with pytest.raises(ValueError, match=r"belongs to another optimizer|lacks .* of the .* parameters"):
            train(clip, {"optimizers": foreign})
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert len(moved(train(clip, {"optimizers": (optimizer, scheduler)}), before)) > 40


@pytest.mark.parametrize("settings", [{}, {"base_loss": "cross_entropy"}, {"regularizer": "kl"}])
def test_a_batch_of_one_image_is_refused(clip, train, settings):
    with pytest.raises(ValueError, match=r"a batch has one image.*mini_batch_size=1"):
        train("no/model", per_device_train_batch_size=1, **settings)


def test_a_last_batch_of_one_image_is_warned_of(clip, train, caplog):
    train(clip, per_device_train_batch_size=23)
    assert "dataloader_drop_last=True" in caplog.text


def test_what_the_constructor_draws_depends_on_the_seed_alone(clip, processor, config, dataset):
    def drawn(model, before, **settings):
        torch.manual_seed(before)
        args = config(**settings)
        trainer = StarFTTrainer(model, args, dataset, peft_config="lora", processing_class=processor)
        weights = trainer.model.named_parameters()
        return torch.cat([value.detach().flatten() for name, value in weights if "lora_A" in name])

    one = drawn(copy.deepcopy(clip), 1, seed=5)
    torch.testing.assert_close(one, drawn(str(TINY_CLIP), 2, seed=5), rtol=0, atol=0)
    assert not torch.equal(one, drawn(clip, 1, seed=6))
