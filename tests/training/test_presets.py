"""The presets: what they set, what wins over them, and what a run records of them."""

import copy
import dataclasses
import math

import pytest
import torch

from starft_hf import StarFTConfig, StarFTTrainer, alignment_loss, contrastive_loss
from starft_hf.evaluation.catalog import imagenet_templates
from starft_hf.hub.record import RunRecord
from starft_hf.training.presets import find_preset
from tests.support.runs import steps


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


def test_a_whole_run_is_the_papers_loop_by_hand(clip, processor, dataset, tmp_path):
    """With only batch, epochs and warm-up changed, and nothing drawn at random."""
    clip, rows, batch, epochs, warmup = clip.double(), len(dataset), 7, 3, 5
    args = StarFTConfig.paper(
        tmp_path,
        per_device_train_batch_size=batch,
        num_train_epochs=epochs,
        warmup_steps=warmup,
        train_sampling_strategy="sequential",
        crop_scale=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    given = {"processing_class": processor, "spuriosity": ["{} in the snow."]}
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, **given)
    trainer.train()

    reference, found = copy.deepcopy(clip).eval().requires_grad_(False), []
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=0.1)
    names, labels = dataset.features["label"].names, torch.tensor(dataset["label"][:])
    starts = [(epoch, first) for epoch in range(epochs) for first in range(0, rows, batch)]
    for step, (epoch, first) in enumerate(starts):
        own = labels[first : first + batch]
        images = dataset["image"][first : first + batch]
        templates = ("a photo of a {}.", "a photo of a {} in the snow.")
        texts = [template.format(names[label]) for template in templates for label in own]
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].double()
        tuned, frozen = clip(**inputs), reference(**inputs)
        base = contrastive_loss(tuned.image_embeds, tuned.text_embeds[: len(own)], clip.logit_scale.exp())
        embeds = (part for out in (tuned, frozen) for part in (out.image_embeds, out.text_embeds[len(own) :]))
        aligned = alignment_loss(*embeds, reference.logit_scale.exp(), labels=own)
        loss = base + 0.5 * (1 - (epoch + 1) / epochs) * aligned
        falls = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (len(starts) - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-5 * (step + 1) / warmup if step < warmup else 1e-5 * falls
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())

    assert [entry["loss"] for entry in steps(trainer)] == pytest.approx(found, abs=1e-9)
    for name, value in clip.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name].cpu(), value, rtol=0, atol=1e-9, msg=name)
