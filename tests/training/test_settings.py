"""Every setting is honored, refused with the reason, or warned of as without effect; the record repeats the run."""

import copy
import dataclasses
import inspect
import re

import numpy as np
import pytest
import torch
import transformers.trainer
import transformers.trainer_callback
import transformers.trainer_optimizer
import transformers.training_args
from accelerate import ParallelismConfig
from accelerate.utils import DynamoBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils
from transformers.utils import logging as transformers_logging

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.training import inherited_settings
from starft_hf.training.unused_settings import settings_without_effect
from tests.support.runs import steps


# A value that is refused.
REFUSED = {
    "adam_beta1": 1.0,
    "adam_beta2": -0.1,
    "adam_epsilon": float("inf"),
    "include_for_metrics": ["inputs"],
    "learning_rate": float("nan"),
    "dataloader_num_workers": -1,
    "gradient_accumulation_steps": 0,
    "max_grad_norm": float("nan"),
    "max_steps": 0,
    "per_device_eval_batch_size": 0,
    "per_device_train_batch_size": 0,
    "neftune_noise_alpha": 5.0,
    "num_train_epochs": -1,
    "train_sampling_strategy": "group_by_length",
    "use_liger_kernel": True,
    "weight_decay": float("nan"),
}

# A value that nothing uses.
WITHOUT_EFFECT = {
    "average_tokens_across_devices": False,
    "do_eval": True,
    "do_predict": True,
    "do_train": True,
    "label_names": ["labels"],
    "length_column_name": "size",
    "liger_kernel_config": {"rope": True},
    "logging_nan_inf_filter": True,
    "optim_target_modules": ["q_proj"],
    "prediction_loss_only": True,
    "use_cache": True,
}

# A value that changes the losses of a run, with other settings that it needs.
CHANGES = {
    "adam_beta1": (0.5, {}),
    "adam_beta2": (0.5, {}),
    "adam_epsilon": (1e-2, {}),
    "bf16": (True, {}),
    "data_seed": (7, {}),
    "dataloader_drop_last": (True, {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 10}),
    "gradient_accumulation_steps": (2, {}),
    "label_smoothing_factor": (0.3, {"base_loss": "cross_entropy", "regularizer": "none"}),
    "learning_rate": (1e-4, {}),
    "lr_scheduler_kwargs": ({"num_cycles": 2.0}, {"max_steps": 4}),
    "lr_scheduler_type": ("constant", {}),
    "max_grad_norm": (0.01, {"optim": "sgd"}),
    "max_steps": (2, {}),
    "num_train_epochs": (2, {"max_steps": -1}),
    "optim": ("sgd", {}),
    "per_device_train_batch_size": (6, {}),
    "seed": (7, {}),
    "train_sampling_strategy": ("class_balanced", {}),
    "warmup_steps": (2, {}),
    "weight_decay": (0.9, {}),
}
# Refused or honored by a test of its own, a former name of another one, or of launchers that no longer pass it.
ELSEWHERE = {"fp16", "resume_from_checkpoint", "gradient_checkpointing_kwargs", "local_rank"}


def losses(clip, processor, args, dataset):
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor)
    trainer.train()
    return [step["loss"] for step in steps(trainer)]


def test_every_inherited_setting_is_honored_refused_or_warned_of():
    """What is neither refused nor seen in the losses must be read by `Trainer`, in code that this package keeps."""
    modules = (transformers.trainer, transformers.trainer_callback, transformers.trainer_optimizer)
    modules += (transformers.training_args, integration_utils)
    kept = "".join(map(inspect.getsource, modules))
    known = {*REFUSED, *WITHOUT_EFFECT, *CHANGES, *ELSEWHERE}
    rest = {part.name for part in dataclasses.fields(TrainingArguments) if part.init} - known
    assert sorted(name for name in rest if not re.search(rf"\b(args|self)\.{name}\b", kept)) == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused_settings_say_why(config, name):
    more = {"max_steps": -1} if name == "num_train_epochs" else {}
    with pytest.raises(ValueError, match=rf"^{name} is .*{re.escape(str(REFUSED[name]).strip('[]'))}"):
        config(**{name: REFUSED[name]}, **more)


def test_further_settings_that_would_make_it_another_run(config):
    with pytest.raises(ValueError, match="num_train_epochs is 0 and max_steps is -1, so nothing would be trained"):
        config(num_train_epochs=0, max_steps=-1)
    with pytest.raises(ValueError, match=r"split_batches=True.*set per_device_train_batch_size"):
        config(accelerator_config={"split_batches": True})
    with pytest.raises(ValueError, match=r"tp_size=2.*data parallelism"):
        config(parallelism_config=ParallelismConfig(tp_size=2))
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1.*base_loss='cross_entropy'"):
        config(label_smoothing_factor=0.1)


def test_half_precision_of_gpus_is_refused_on_a_cpu(clip, processor, config, dataset):
    with pytest.raises(ValueError, match=r"fp16=True needs a GPU.*use bf16=True"):
        StarFTTrainer(clip, config(fp16=True), dataset, processing_class=processor)


def test_a_precision_that_accelerate_was_configured_for_is_a_setting(clip, processor, config, dataset, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    assert trainer.args.bf16
    assert trainer.accelerator.mixed_precision == "bf16"
    assert trainer._run_settings()["bf16"] is True
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="configured for fp8, which was never run; use bf16"):
        StarFTTrainer(clip, config(), dataset, processing_class=processor)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    late = config()
    late.bf16 = True
    with pytest.raises(ValueError, match=r"too late; use StarFTConfig\(bf16=True\)"):
        StarFTTrainer(clip, late, dataset, processing_class=processor)


def test_compilation_that_accelerate_was_configured_for_is_a_setting(clip, processor, config, dataset, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    assert trainer.accelerator.state.dynamo_plugin.backend == DynamoBackend.EAGER
    assert trainer.args.torch_compile
    assert trainer.args.torch_compile_backend == "eager"
    assert trainer.args.torch_compile_mode == "default"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, r"configured for Megatron-LM.*supports data parallelism"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            r"tp_size=2.*supports data parallelism",
        ),
    ],
)
def test_what_accelerate_was_configured_for_and_was_never_run_is_refused(
    clip, processor, config, dataset, monkeypatch, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        StarFTTrainer(clip, config(), dataset, processing_class=processor)


def test_processes_that_do_not_know_of_each_other_are_refused(clip, processor, config, dataset, monkeypatch):
    """Started by torchrun on a machine without a GPU, without use_cpu: Trainer takes each for the only one."""
    args = config()
    monkeypatch.setattr(inherited_settings, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes were started, .* set use_cpu=True"):
        StarFTTrainer(clip, args, dataset, processing_class=processor)


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("ece", "min"), ("loss", "min")])
def test_a_plateau_is_one_of_the_metric_in_its_direction(clip, processor, config, dataset, metric, mode):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": f"eval_{metric}"}
    args = config(lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 1}, **settings)
    trainer = StarFTTrainer(clip, args, dataset, dataset, processing_class=processor)
    trainer.train()
    assert (trainer.lr_scheduler.mode, trainer.lr_scheduler.patience) == (mode, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shots", "5"),
        ("mini_batch_size", 2.5),
        ("reg_max_classes", 2.5),
        ("reg_max_classes", "x"),
        ("max_grad_norm", None),
    ],
)
def test_numbers_are_of_their_kind(config, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}")):
        config(**{name: value})


def test_numbers_of_numpy_are_integers(config):
    assert config(shots=np.int64(3)).shots == 3


def test_deepspeed_of_the_launcher_is_refused(clip, processor, config, dataset, monkeypatch):
    args = config()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=r"configured for DeepSpeed.*supports data parallelism"):
        StarFTTrainer(clip, args, dataset, processing_class=processor)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_settings_without_effect_are_warned_of(config, name):
    sentences = list(settings_without_effect(config(**{name: WITHOUT_EFFECT[name]})))
    assert len(sentences) == 1
    assert sentences[0].startswith(f"{name}={WITHOUT_EFFECT[name]!r} has no effect")


def test_settings_of_parts_that_a_run_does_not_have_are_warned_of(clip, processor, config, dataset, caplog):
    transformers_logging.warning_once.cache_clear()
    off = config(regularizer="none", reg_weight=2.0, reference_dtype="bfloat16", reweight_clip=3.0)
    more = {"spuriosity": ["{} at night."], "image_transform": lambda image: image}
    StarFTTrainer(clip, off, dataset, processing_class=processor, **more)
    for name in ("reg_weight=2.0", "reference_dtype='bfloat16'", "reweight_clip=3.0", "spuriosity"):
        assert f"{name} has no effect" in caplog.text
    caplog.clear()
    StarFTTrainer(clip, config(), dataset, processing_class=processor)
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_change_the_losses_do(clip, processor, config, dataset, name):
    value, needed = CHANGES[name]
    before = losses(clip, processor, config(**needed), dataset)
    assert losses(clip, processor, config(**{**needed, name: value}), dataset) != before
    assert name in StarFTConfig.settings_in("run", "recorded")


def test_label_smoothing_is_that_of_cross_entropy(clip, processor, config, dataset):
    smoothed = config(base_loss="cross_entropy", regularizer="none", label_smoothing_factor=0.3)
    trainer = StarFTTrainer(clip, smoothed, dataset, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    log_odds = trainer.training_losses(trainer.model, batch, 0.0)
    outputs = trainer.encoder.forward(trainer.model, batch, trainer.head).head_logits.log_softmax(-1)
    true = outputs.gather(1, batch["labels"][:, None]).mean()
    torch.testing.assert_close(log_odds.loss, -(0.7 * true + 0.3 * outputs.mean()))


OWN = {
    "regularizer": ["none", "star", "kl", "conditional", "l2-sp"],
    "base_loss": ["contrastive", "cross_entropy"],
    "reg_weight": [0.5, "auto"],
    "reg_schedule": ["linear", "constant"],
    "reweight": ["none", "attribution"],
    "mini_batch_size": [None, 3],
    "caption_template": ["{}", ["a {}.", "the {}."]],
    "crop_scale": [None, (0.5, 0.8)],
    "decay_all_parameters": [True, False],
    "shots": [None, 3],
}
INHERITED = {name: [value] for name, (value, needed) in CHANGES.items() if not {*needed} - {"max_steps"}}
DRAWN = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(values) for name, values in (OWN | INHERITED).items()}
)


@pytest.mark.slow
@settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(DRAWN)
def test_the_record_repeats_the_losses_to_the_bit(clip, processor, config, dataset, tmp_path, drawn):
    if drawn.get("regularizer") == "l2-sp":
        # "auto" has no weight for it.
        drawn = {**drawn, "reg_weight": 0.5}
    trainer = StarFTTrainer(copy.deepcopy(clip), config(**drawn), dataset, processing_class=processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    machine = {"output_dir": str(tmp_path), "reference_cache_dir": str(tmp_path / "features"), "use_cpu": True}
    quiet = {"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    again = StarFTConfig.from_pretrained(tmp_path / "saved", **machine, **quiet)
    assert losses(clip, processor, again, dataset) == [step["loss"] for step in steps(trainer)]


class OutOfMemory(TrainerCallback):
    """A device without room for more than some images, in a step."""

    def __init__(self, images, step=0):
        self.images, self.step = images, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.train_batch_size > self.images and state.global_step == self.step:
            raise RuntimeError("CUDA out of memory.")


def test_the_record_has_the_batch_size_that_was_found(clip, processor, config, dataset, tmp_path):
    args = config(auto_find_batch_size=True, per_device_train_batch_size=12)
    found = StarFTTrainer(
        copy.deepcopy(clip), args, dataset, processing_class=processor, callbacks=[OutOfMemory(images=5)]
    )
    found.train()
    found.save_model(str(tmp_path / "saved"))
    machine = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "logging_steps": 1}
    again = StarFTConfig.from_pretrained(tmp_path / "saved", save_strategy="no", disable_tqdm=True, **machine)
    assert again.per_device_train_batch_size == 5
    assert losses(clip, processor, again, dataset) == [step["loss"] for step in steps(found)]


@pytest.mark.parametrize(("images", "step", "match"), [(0, 0, "mini_batch_size=1"), (5, 1, "after 1 steps")])
def test_batch_sizes_that_train_nothing_or_start_from_trained_weights(
    clip, processor, config, dataset, images, step, match
):
    args = config(auto_find_batch_size=True, per_device_train_batch_size=6)
    callbacks = [OutOfMemory(images, step)]
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor, callbacks=callbacks)
    with pytest.raises((ValueError, RuntimeError), match=match):
        trainer.train()


def test_a_record_of_more_processes_is_warned_of(clip, processor, config, dataset, tmp_path, caplog):
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    dataclasses.replace(trainer.record, processes=4).save(tmp_path)
    StarFTConfig.from_pretrained(tmp_path, output_dir=str(tmp_path), use_cpu=True)
    assert "had 4 processes and this one has 1, with 8 images each" in caplog.text


def test_searches_for_hyperparameters_are_refused_with_what_to_do(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    with pytest.raises(NotImplementedError, match=r"one per setting in a loop, or use starft_hf\.compare"):
        trainer.hyperparameter_search(n_trials=2)
    with pytest.raises(ValueError, match=r"pass the model itself.*starft_hf\.compare"):
        StarFTTrainer(None, config(), dataset, processing_class=processor, model_init=lambda: clip)


def test_the_checkpoint_to_resume_from_may_be_a_setting(clip, processor, config, dataset, tmp_path):
    first = config(save_strategy="steps", save_steps=2)
    StarFTTrainer(copy.deepcopy(clip), first, dataset, processing_class=processor).train()
    args = config(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor)
    trainer.train()
    assert trainer._initial_global_step == 2


def test_settings_that_were_not_passed_are_at_their_defaults(config):
    args = config(learning_rate=1e-3, crop_scale=[0.9, 1.0], caption_template="a drawing of a {}.")
    kept = args.settings_at_defaults
    assert {"regularizer", "reg_weight", "crop_scale", "weight_decay", "lr_scheduler_type", "optim"} <= kept
    assert not {"learning_rate", "caption_template"} & kept
