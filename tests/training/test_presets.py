"""The presets: what they set, what wins over them, and what a run records of them."""

import dataclasses

import pytest

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.evaluation.catalog import imagenet_templates
from starft_hf.hub.record import RunRecord
from starft_hf.training.presets import find_preset


PAPER = {
    "base_loss": "contrastive",
    "regularizer": "star",
    "reg_weight": 0.5,
    "reg_schedule": "epoch_linear",
    "caption_template": "a photo of a {}.",
    "crop_scale": (0.9, 1.0),
    "image_decoding": "full",
    "num_train_epochs": 10,
    "per_device_train_batch_size": 512,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 500,
    "warmup_from_zero": False,
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.1,
    "decay_all_parameters": True,
    "max_grad_norm": 0.0,
    "gradient_accumulation_steps": 1,
    "dataloader_drop_last": False,
    "label_smoothing_factor": 0.0,
    "reweight": "none",
}


def test_the_papers_command(tmp_path):
    args = StarFTConfig.paper(tmp_path)
    assert {name: getattr(args, name) for name in PAPER} == PAPER
    assert args.output_dir == str(tmp_path)
    assert args.zero_shot_templates == list(imagenet_templates())


def test_changes_win_over_a_preset(tmp_path):
    args = StarFTConfig.paper(tmp_path, per_device_train_batch_size=12, eval_templates=None, warmup_steps=0)
    assert (args.per_device_train_batch_size, args.warmup_steps, args.learning_rate) == (12, 0, 1e-5)
    assert args.zero_shot_templates == ["a photo of a {}."]
    # Without a warm-up this setting has no effect, and nobody has set it.
    assert args.warmup_from_zero
    with pytest.raises(TypeError, match="reg_weigth"):
        StarFTConfig.paper(tmp_path, reg_weigth=1)


@pytest.mark.parametrize("changes", [{"regularizer": "none"}, {"lr_scheduler_type": "constant"}, {"warmup_steps": 0}])
def test_what_has_no_effect_with_the_changes_is_not_warned_of(clip, processor, dataset, tmp_path, caplog, changes):
    args = StarFTConfig.paper(tmp_path, use_cpu=True, save_strategy="no", **changes)
    StarFTTrainer(clip, args, dataset, processing_class=processor)
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("processes", [1, 8, 3])
def test_the_batch_is_that_of_all_processes(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(StarFTConfig, "world_size", processes)
    if 512 % processes:
        with pytest.raises(ValueError, match=r"512 images, which 3 processes cannot share evenly; set per_device"):
            StarFTConfig.paper(tmp_path)
    else:
        assert StarFTConfig.paper(tmp_path).per_device_train_batch_size * processes == 512
    assert StarFTConfig.paper(tmp_path, per_device_train_batch_size=5).per_device_train_batch_size == 5


def test_a_class_of_ones_own_has_the_preset_as_well(tmp_path):
    @dataclasses.dataclass
    class Own(StarFTConfig):
        learning_rate: float = 1.0
        extra: int = 1

    args = Own.paper(tmp_path, extra=2)
    assert (type(args), args.learning_rate, args.extra) == (Own, 1e-5, 2)


def test_unknown_presets_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown preset 'papers'. Did you mean 'paper'\?"):
        find_preset("papers")


def test_the_record_has_what_was_used(clip, processor, dataset, tmp_path):
    args = StarFTConfig.paper(tmp_path, use_cpu=True, learning_rate=2e-5, save_strategy="no")
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    trainer.save_model()
    recorded = RunRecord.load(tmp_path).config
    expected = {**PAPER, "learning_rate": 2e-5, "crop_scale": [0.9, 1.0], "eval_templates": list(imagenet_templates())}
    assert {name: recorded[name] for name in expected} == expected
    again = StarFTConfig.from_pretrained(tmp_path, output_dir=str(tmp_path), use_cpu=True)
    assert again.recorded_settings == args.recorded_settings
