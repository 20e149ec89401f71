"""What `freeze` names stays as it is, bit for bit, and a frozen text tower embeds its captions once."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from starft_hf import StarFTTrainer
from starft_hf.models.parts import PartName, parts_of
from starft_hf.training import setup
from starft_hf.training.checkpointing.files import CheckpointError
from tests.support.families import FAMILIES, towers
from tests.support.families import family as make
from tests.support.runs import assert_same_weights, steps
from tests.support.tiny import StopAt


LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2}
MIXED = ["text.layers.0", "vision.embeddings", "vision.layers.1", "text.output", "logit_scale"]


@pytest.fixture
def train(processor, config, dataset):
    def run(model, resume=None, trainer=None, **settings):
        made = StarFTTrainer(model, config(**settings), dataset, processing_class=processor, **trainer or {})
        made.train(resume_from_checkpoint=resume)
        return made

    return run


def named(model, freeze):
    """The parameters of a model that `freeze` names."""
    names = [PartName.parse(name, "freeze") for name in freeze]
    return {name for name, part in parts_of(model).items() if any(one.means(part) for one in names)}


def moved(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value.cpu(), before[name].cpu())}


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "freeze",
    [MIXED, *(pytest.param(f, marks=pytest.mark.slow) for f in (["text"], ["vision", "logit_scale"], ["embeddings"]))],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_parts_stay_and_all_others_move(family, freeze, config, dataset):
    model, processor = make(family)
    freeze = [name for name in freeze if named(model, [name])]
    before = weights_of(model)
    args = config(freeze=freeze, max_steps=1, warmup_steps=0, weight_decay=0.5, reference_cache="none")
    StarFTTrainer(model, args, dataset, processing_class=processor).train()
    # The losses of ALIGN do not reach the pooler of its text tower.
    unused = {name for name in before if family == "align" and "text_model.pooler" in name}
    assert moved(model, before) == before.keys() & parts_of(model).keys() - named(model, freeze) - unused


def test_a_frozen_head_stays_and_the_encoder_moves(clip, processor, config, dataset):
    args = config(freeze=["head", "text", "logit_scale"], base_loss="cross_entropy", max_steps=1, warmup_steps=0)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    before = weights_of(trainer.model)
    trainer.train()
    names = moved(trainer.model, before)
    assert names
    assert all(name.startswith("vision_model.") or name == "visual_projection.weight" for name in names)


def test_a_head_alone_can_be_trained(clip, train):
    before = weights_of(clip)
    trainer = train(clip, freeze=["vision", "text", "logit_scale"], base_loss="cross_entropy", warmup_steps=0)
    assert moved(trainer.model, {**weights_of(trainer.model), **before}) == set()
    assert trainer.head.bias.any()


def test_batch_norm_of_frozen_layers_keeps_its_statistics(config, dataset):
    model, processor = make("align")
    before = weights_of(model)
    args = config(freeze=["vision.layers.0-3"], freeze_batch_norm=False, reference_cache="none", max_steps=2)
    StarFTTrainer(model, args, dataset, processing_class=processor).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value.cpu(), before[name].cpu())}
    assert not any(f"blocks.{number}." in name for name in changed for number in range(4))
    assert any("blocks.4." in name and "running_mean" in name for name in changed)


# What the captions and spurious captions of a step are for.
RUNS = {
    "star": {},
    "conditional": {"regularizer": "conditional"},
    "none": {"regularizer": "none"},
    "cross-entropy": {"base_loss": "cross_entropy"},
    "in chunks": {"mini_batch_size": 3},
    "live, in chunks": {"mini_batch_size": 3, "reference_cache": "none", "regularizer": "conditional"},
}


@pytest.mark.parametrize("name", RUNS)
def test_captions_that_are_embedded_once_change_nothing(clip, train, monkeypatch, name):
    settings = {"freeze": ["text"], "warmup_steps": 0, **RUNS[name]}
    forwards = []
    model = copy.deepcopy(clip).double()
    # The reference is a copy with the same hook, and embeds captions without gradients.
    model.text_model.register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    once = train(model, **settings)
    assert not any(forwards)
    monkeypatch.setattr(setup, "frozen_texts", lambda *args, **kwargs: None)
    in_every_step = train(clip.double(), **settings)
    for one, other in zip(steps(once), steps(in_every_step), strict=True):
        for key in ("loss", "base_loss", "reg_loss", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-12, abs=1e-12)
    assert_same_weights(once, in_every_step, rtol=0, atol=1e-12)


def test_embeddings_of_captions_are_those_of_the_reference_and_of_the_model(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip.double(), config(freeze=["text"]), dataset, processing_class=processor)
    trainer.setup.prepare(trainer.args.device)
    found = trainer.reference.texts
    assert trainer.setup.frozen_texts._texts.file == found.file
    rows = [trainer.train_dataset[index] for index in range(6)]
    batch = trainer.data_collator(rows)
    assert "input_ids" not in batch
    embeds = trainer.setup.frozen_texts.rows(batch)
    for key, texts in (("caption", "caption_rows"), ("spurious_caption", "spurious_rows")):
        expected = trainer.encoder.encode(clip.eval(), texts=[row[key] for row in rows])
        torch.testing.assert_close(embeds[batch[texts]], expected, rtol=0, atol=1e-12)


def test_captions_from_a_column_are_embedded_in_every_step_without_gradients(clip, train, dataset):
    before = weights_of(clip)
    trainer = train(clip, freeze=["text"], caption_column="note", max_steps=1, warmup_steps=0)
    assert trainer.setup.frozen_texts is None
    assert moved(clip, before) == named(clip, ["vision", "logit_scale"])


def test_too_many_captions_to_keep_are_embedded_in_every_step(clip, train, caplog):
    trainer = train(clip, freeze=["text"], reference_text_cache_gib=1e-6, max_steps=1)
    assert trainer.setup.frozen_texts is None
    assert "the captions of every batch are embedded in its step" in caplog.text


def test_a_frozen_tower_has_no_dropout(config, dataset):
    model, processor = towers("vit", "bert")
    for module in model.text_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    trainers = []
    for column in (None, "note"):
        args = config(freeze=["text"], regularizer="none", caption_column=column, max_steps=1)
        trainers.append(StarFTTrainer(copy.deepcopy(model), args, dataset, processing_class=processor))
        trainers[-1].train()
        assert not trainers[-1].model.text_model.training
        assert trainers[-1].model.vision_model.training
    batch = trainers[0].data_collator([trainers[0].train_dataset[0]])
    caption = trainers[0].train_dataset[0]["caption"]
    expected = trainers[0].encoder.encode(model.eval(), texts=[caption])
    torch.testing.assert_close(trainers[0].setup.frozen_texts.rows(batch).cpu(), expected.cpu())


def test_freezing_a_tower_under_an_adapter_freezes_the_adapter_there(clip, train):
    adapter = {"peft_config": LoraConfig(**LORA)}
    trainer = train(copy.deepcopy(clip), freeze=["text"], trainer=adapter, max_steps=1)
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trained
    assert all("vision_model" in name or name.endswith("logit_scale") for name in trained)
    alone = train(clip, trainer={"peft_config": "lora-vision"}, max_steps=1)
    # A preset that leaves out the text tower leaves its captions as they are, too.
    assert alone.setup.frozen_texts is not None


def test_captions_of_a_frozen_adapter_are_embedded_with_it(clip, processor, config, dataset):
    model = get_peft_model(clip, LoraConfig(**LORA))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value)
    args = config(freeze=["text"], max_steps=1, plain_caption_share=0)
    trainer = StarFTTrainer(model, args, dataset, processing_class=processor)
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    texts = [trainer.train_dataset[0][key] for key in ("caption", "spurious_caption")]
    with model.eval().disable_adapter():
        off = trainer.encoder.encode(model, texts=texts)
    found = trainer.setup.frozen_texts.rows(batch)
    torch.testing.assert_close(found, trainer.encoder.encode(model, texts=texts))
    assert (found - off).abs().max() > 1e-3
    torch.testing.assert_close(trainer.reference.embed_captions(batch), off[:1])


@pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)], ids=["full", "adapter"])
def test_a_resumed_run_is_the_uninterrupted_one(clip, train, tmp_path, peft_config):
    settings = {
        **{"freeze": ["text", "vision.layers.0"], "layer_decay": 0.5, "learning_rates": {"logit_scale": 3.0}},
        **{"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "max_logit_scale": 20.001},
    }
    whole = train(copy.deepcopy(clip), trainer={"peft_config": peft_config}, **settings)
    stopped = {"peft_config": peft_config, "callbacks": [StopAt(2)]}
    train(copy.deepcopy(clip), trainer=stopped, output_dir=str(tmp_path / "b"), **settings)
    resumed = train(clip, True, {"peft_config": peft_config}, output_dir=str(tmp_path / "b"), **settings)
    assert steps(resumed) == steps(whole)
    assert_same_weights(resumed, whole)
    trained = [
        {name for name, value in run.model.named_parameters() if value.requires_grad} for run in (whole, resumed)
    ]
    assert trained[0] == trained[1]
    assert [[group["lr"] for group in run.optimizer.param_groups] for run in (whole, resumed)] == [
        [group["lr"] for group in whole.optimizer.param_groups]
    ] * 2


def test_a_checkpoint_with_another_text_tower_is_refused(clip, train):
    train(copy.deepcopy(clip), save_strategy="steps", save_steps=2, max_steps=2, warmup_steps=0)
    with pytest.raises(CheckpointError, match="pass it as the model"):
        train(clip, True, freeze=["text"], max_steps=4, ignore_mismatched_settings=True)


def test_a_text_tower_that_is_trained_after_all_is_refused(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(freeze=["text"]), dataset, processing_class=processor)
    clip.requires_grad_(True)
    with pytest.raises(ValueError, match=r"requires_grad=True now; make a new StarFTTrainer"):
        trainer.train()


def test_bfloat16_is_used_for_the_images_all_the_same(clip, train):
    seen = set()
    clip.visual_projection.register_forward_hook(
        lambda module, args, output: seen.add(output.dtype) if torch.is_grad_enabled() else None
    )
    for size in (None, 3):
        train(copy.deepcopy(clip), freeze=["text"], bf16=True, mini_batch_size=size, max_steps=1)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["txet"], r"unknown part 'txet'. Did you mean 'text'\?.*'vision.layers'"),
        (["vision.layers.0-5"], "'vision.layers.0-5', and the vision tower of this CLIPModel has 2 layers, 0 to 1"),
        (["vision.layers.1-0"], "ends before it begins"),
        (["vision", "text"], "nothing to train but the temperature"),
        (["vision", "text.embeddings", "text.layers", "text.output", "text.projections"], "nothing to train but"),
        (["head"], r"base_loss='contrastive' has no linear head"),
        ([3], "unknown part 3"),
    ],
)
def test_what_cannot_be_frozen_is_refused(clip, train, freeze, message):
    with pytest.raises(ValueError, match=message):
        train(clip, freeze=freeze)
    assert all(value.requires_grad for value in clip.parameters())


def test_what_a_model_lacks_is_refused_with_what_it_has(config, dataset):
    model, processor = make("align")
    args = config(freeze=["vision.projections"])
    with pytest.raises(ValueError, match=r"this AlignModel does not have; it has vision.embeddings, vision.layers.0-"):
        StarFTTrainer(model, args, dataset, processing_class=processor)


def test_an_adapter_that_trains_nothing_there_is_warned_of(clip, train, caplog):
    train(clip, freeze=["embeddings"], trainer={"peft_config": "lora"}, max_steps=1)
    assert "freeze='embeddings' has no effect: the adapter trains nothing there" in caplog.text


def test_what_was_frozen_before_is_warned_of(clip, processor, config, dataset, caplog):
    for freeze in (["text", "vision.layers.0"], None):
        StarFTTrainer(clip, config(freeze=freeze), dataset, processing_class=processor)
        assert ("Parameters of vision.layers.0, text have requires_grad=False" in caplog.text) == (freeze is None)
