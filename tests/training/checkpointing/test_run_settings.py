"""A checkpoint of another run is refused with the difference, or accepted where that is asked for."""

import copy
import dataclasses
import json

import pytest
import torch
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

from starft_hf import CheckpointError, SpuriosityPool, StarFTConfig, StarFTTrainer
from starft_hf.training.checkpointing.files import CHECKPOINT_FILE
from starft_hf.training.scopes import IRRELEVANT, RECORDED, RUN
from tests.support.runs import steps
from tests.support.tiny import make_dataset


POOL = ["{} in the snow.", "{} at night."]
SAVING = {"reg_weight": 0.5, "plain_caption_share": 0.0, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}

# Settings, arguments of the trainer, and what the error says.
OTHERS = {
    "pool": ({}, {"spuriosity": ["{} in the snow.", "{} at noon."]}, "templates number 2 was '{} at night.' and is"),
    "size of the pool": ({}, {"spuriosity": ["{} in the snow."]}, "spurious templates were 2 and are 1"),
    "weights of templates": ({}, {"spuriosity": SpuriosityPool(POOL, weights=[1, 2])}, "spurious templates number"),
    "caption template": ({"caption_template": "a drawing of a {}."}, {}, "'a photo of a {}.' and is 'a drawing of"),
    "class names": ({"class_names": ["owl", "van", "violin", "fern"]}, {}, "names number 2 was 'truck' and is 'van'"),
    "regularizer": ({"regularizer": "kl"}, {}, "regularizer was 'star' and is 'kl'"),
    "weight": ({"reg_weight": 0.75}, {}, "reg_weight was 0.5 and is 0.75"),
    "base loss": ({"base_loss": "cross_entropy"}, {}, "base_loss was 'contrastive' and is 'cross_entropy'"),
    "seed": ({"seed": 1}, {}, "seed was 42 and is 1"),
    "learning rate": ({"learning_rate": 2e-3}, {}, "learning_rate was 0.001 and is 0.002"),
    "length": ({"max_steps": 4}, {}, "max_steps was 2 and is 4"),
    "batch": ({"per_device_train_batch_size": 4}, {}, "images_per_step was 8 and is 4"),
    "crops": ({"crop_scale": None}, {}, r"crop_scale was \[0.9, 1.0\] and is None"),
    "adapter": ({}, {"peft_config": "lora"}, "adapter was None and is"),
}


@pytest.fixture
def trainer_of(clip, processor, config, dataset):
    def make(*, train_dataset=dataset, model=None, **changes):
        kwargs = {"spuriosity": POOL, **changes.pop("kwargs", {})}
        settings = config(**{**SAVING, **changes})
        return StarFTTrainer(
            model or copy.deepcopy(clip), settings, train_dataset, processing_class=processor, **kwargs
        )

    return make


@pytest.fixture
def checkpoint(trainer_of, tmp_path):
    trainer_of().train()
    return tmp_path / "output" / "checkpoint-2"


def test_another_run_is_refused_before_anything_is_computed(trainer_of, checkpoint, monkeypatch):
    def prepare(*args):
        raise AssertionError("too late")

    for name, (settings, kwargs, message) in OTHERS.items():
        trainer = trainer_of(**settings, kwargs=kwargs)
        monkeypatch.setattr(trainer.reference, "prepare", prepare)
        with pytest.raises(CheckpointError, match=message) as error:
            trainer.train(resume_from_checkpoint=True)
        assert "was written by another run" in str(error.value), name
        assert "ignore_mismatched_settings=True" in str(error.value)


def test_another_model_other_data_and_another_reference_are_refused(trainer_of, checkpoint, clip):
    other = copy.deepcopy(clip)
    with torch.no_grad():
        other.visual_projection.weight[0, 0] += 1
    cases = {
        "model was '": trainer_of(model=copy.deepcopy(other)),
        "reference_model was None and is '": trainer_of(kwargs={"reference_model": other}),
        "rows of the training set was 24 and is 25": trainer_of(train_dataset=make_dataset(25)),
        "images, labels and captions of the training set number": trainer_of(train_dataset=make_dataset(seed=1)),
    }
    for message, trainer in cases.items():
        with pytest.raises(CheckpointError, match=message):
            trainer.train(resume_from_checkpoint=str(checkpoint))


def test_an_adapter_of_another_shape_is_refused(trainer_of, clip):
    def adapter(rank):
        return {"peft_config": LoraConfig(r=rank, target_modules=["q_proj", "v_proj"])}

    trainer_of(kwargs=adapter(4)).train()
    with pytest.raises(CheckpointError, match="adapter had r=4 and has r=8"):
        trainer_of(kwargs=adapter(8)).train(resume_from_checkpoint=True)


def test_a_flag_accepts_the_difference_with_a_warning(trainer_of, checkpoint, caplog):
    trainer = trainer_of(max_steps=4, regularizer="kl", ignore_mismatched_settings=True)
    trainer.train(resume_from_checkpoint=True)
    assert len(steps(trainer)) == 4
    message = next(m for m in map(str, (record.getMessage() for record in caplog.records)) if "another run" in m)
    assert "max_steps was 2 and is 4" in message
    assert "regularizer was 'star' and is 'kl'" in message


HARMLESS = {
    # "auto" in the run before.
    "regularizer": "star",
    "mini_batch_size": 3,
    "reference_cache": "none",
    "eval_templates": ["{}"],
    "logging_steps": 2,
    "output_dir": "elsewhere",
    "dataloader_num_workers": 1,
    "per_device_eval_batch_size": 3,
}


def test_what_changes_nothing_is_not_a_difference(trainer_of, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = make_dataset().with_format(None)
    trainer = trainer_of(train_dataset=same, **HARMLESS)
    assert trainer.checkpoint_to_resume(str(checkpoint)) == checkpoint


def test_after_an_update_of_transformers_fingerprints_of_models_say_nothing(trainer_of, checkpoint):
    file = checkpoint / CHECKPOINT_FILE
    content = json.loads(file.read_text())
    content["identity"] |= {"version of transformers": "5.0", "model": "of another version"}
    file.write_text(json.dumps(content))
    assert trainer_of().checkpoint_to_resume(True) == checkpoint
    del content["identity"]["regularizer"]
    file.write_text(json.dumps(content))
    assert trainer_of(regularizer="kl").checkpoint_to_resume(True) == checkpoint


def test_every_setting_has_a_scope():
    own = [part for part in dataclasses.fields(StarFTConfig) if part.name in StarFTConfig.__annotations__]
    assert {part.metadata["help"].scope for part in own} == {RUN, RECORDED, IRRELEVANT}
    inherited = {part.name for part in dataclasses.fields(TrainingArguments)} - {part.name for part in own}
    assert {"seed", "optim", "max_steps", "bf16"} <= inherited & set(StarFTConfig.settings_in(RUN))
    assert {"output_dir", "hub_token", "report_to"} <= inherited & set(StarFTConfig.settings_in(IRRELEVANT))
    named = [name for scope in (RUN, RECORDED, IRRELEVANT) for name in StarFTConfig.settings_in(scope)]
    assert sorted(named) == sorted(part.name for part in dataclasses.fields(StarFTConfig) if part.init)

    @dataclasses.dataclass
    class Further(StarFTConfig):
        temperature: float = 1.0

    assert set(Further.settings_in(RUN)) - set(StarFTConfig.settings_in(RUN)) == {"temperature"}


def test_weights_without_the_state_of_the_optimizer_are_refused(trainer_of):
    trainer_of(save_only_model=True).train()
    with pytest.raises(CheckpointError, match="written with save_only_model=True"):
        trainer_of().train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_trainer_is_taken_with_a_warning(trainer_of, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr(StarFTTrainer, "_save_checkpoint", Trainer._save_checkpoint)
        trainer_of().train()
    trainer_of().train(resume_from_checkpoint=True)
    assert "was not written by StarFTTrainer" in caplog.text


def test_a_subclass_may_change_defaults_and_add_settings(tmp_path):
    @dataclasses.dataclass
    class Own(StarFTConfig):
        learning_rate: float = 3e-5
        reference_cache_dir: str | None = "/home/someone/cache"
        mini_batch_size: int | None = 8
        margin: float = 0.1

    recorded = Own(output_dir=str(tmp_path), use_cpu=True).recorded_settings
    assert recorded["learning_rate"] == 3e-5
    assert recorded["margin"] == 0.1
    assert "reference_cache_dir" not in recorded
    assert set(Own.settings_in(RUN)) == {*StarFTConfig.settings_in(RUN), "margin"}
