"""A resumed run is the uninterrupted run, to the bit, in everything that is kept of it."""

import copy
import math

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from starft_hf import StarFTTrainer
from tests.support.multi_label import make_multi_label_dataset
from tests.support.runs import assert_same_weights, steps, without_timing
from tests.support.tiny import make_dataset


SETTINGS = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "reg_weight": 5.0,
    "reg_schedule": "linear",
    "save_strategy": "steps",
    "save_steps": 100,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "metric_for_best_model": "eval_worst_group_accuracy",
    "group_column": "group",
}
LORA = LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
QUICK_CASES = {
    "full, contrastive, crops, in the warm-up": ({"warmup_steps": 4, "warmup_from_zero": False}, 2),
    "full, cross-entropy": ({"base_loss": "cross_entropy", "dataloader_num_workers": 1}, 2),
    "group-balanced, in the second epoch": ({"train_sampling_strategy": "group_balanced"}, 4),
    "multi-label, evaluated at the start": (
        {"base_loss": "multi_label", "metric_for_best_model": "eval_worst_class_ap", "eval_on_start": True},
        2,
    ),
    "adapter with dropout, at the end of an epoch": ({"peft_config": LORA, "dataloader_num_workers": 2}, 3),
    "in chunks, logged every second step, evaluated at the start": (
        {"mini_batch_size": 5, "logging_steps": 2, "eval_on_start": True},
        1,
    ),
}
# Of an iterable dataset with 24 rows, in batches of 8.
ITERABLE_CASES = {
    "in the first pass": ({}, 2),
    "in the second pass, with a worker": ({"dataloader_num_workers": 1, "shuffle_buffer_size": 6}, 5),
    "between passes that do not fill a batch, accumulated": (
        {"per_device_train_batch_size": 7, "gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"},
        4,
    ),
}
SLOW_CASES = {
    "full, cross-entropy, both caches": {"base_loss": "cross_entropy", "crop_scale": None, "reference_cache": "full"},
    "adapter with dropout": {"peft_config": LORA, "dataloader_num_workers": 2},
    "accumulated, in chunks, logged every second step": {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "mini_batch_size": 2,
        "logging_steps": 2,
    },
    "adapter, cross-entropy, text cache": {
        "peft_config": LORA,
        "base_loss": "cross_entropy",
        "reference_cache": "text",
        "dataloader_num_workers": 2,
        "dataloader_persistent_workers": True,
    },
    "no cache, by epochs, an uneven end": {
        "reference_cache": "none",
        "reg_schedule": "epoch_linear",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 7,
        "eval_strategy": "epoch",
    },
    "several captions, accumulated unevenly": {
        "caption_template": ["a photo of a {}.", "a picture of a {}."],
        "gradient_accumulation_steps": 2,
        "logging_steps": 3,
        "dataloader_num_workers": 4,
    },
    "kl, the best model in the end": {
        "regularizer": "kl",
        "load_best_model_at_end": True,
        "eval_steps": 1,
        "save_steps": 1,
    },
    "in chunks with an adapter and both caches": {
        "peft_config": LORA,
        "crop_scale": None,
        "reference_cache": "full",
        "mini_batch_size": 3,
    },
    "conditional, not all classes, weighted, an adapter, in chunks": {
        "regularizer": "conditional",
        "reg_max_classes": 3,
        "reg_weight": "auto",
        "reweight": "attribution",
        "peft_config": LORA,
        "mini_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    },
    "in double precision, bfloat16 reference": {"reference_dtype": "bfloat16", "weight_decay": 0.3},
    "autocast in bfloat16": {"bf16": True},
}


class CutError(Exception):
    pass


class CutAt(TrainerCallback):
    """Saves a checkpoint at a step, right after which the process ends."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= state.global_step == self.step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise CutError


@pytest.fixture
def trainer_of(clip, processor, config, dataset, tmp_path):
    """Makes a trainer of a fresh model that saves under `tmp_path / name`."""

    def make(name, *callbacks, **settings):
        peft_config = settings.pop("peft_config", None)
        # An adapter's first weights come from the global generator.
        torch.manual_seed(0)
        several = settings.get("base_loss") == "multi_label"
        train, make_set = dataset, make_multi_label_dataset if several else make_dataset
        if several:
            train = make_set()
        elif settings.pop("iterable", False):
            train = dataset.to_iterable_dataset(num_shards=3)
        return StarFTTrainer(
            copy.deepcopy(clip),
            config(output_dir=str(tmp_path / name), **{**SETTINGS, **settings}),
            train,
            make_set(12, seed=5),
            processing_class=processor,
            peft_config=peft_config and copy.deepcopy(peft_config),
            callbacks=list(callbacks),
        )

    return make


def assert_resumes(trainer_of, stops, **settings):
    whole = trainer_of("whole", **settings)
    whole.train()
    for stop in stops:
        name = f"cut-{stop}"
        with pytest.raises(CutError):
            trainer_of(name, CutAt(stop), **settings).train()
        torch.manual_seed(stop)
        resumed = trainer_of(name, **settings)
        resumed.train(resume_from_checkpoint=True)
        assert_same_weights(whole, resumed)
        assert without_timing(resumed.state.log_history) == without_timing(whole.state.log_history)
        assert resumed.zero_shot_results == whole.zero_shot_results
        for name in ("best_metric", "best_global_step", "global_step", "epoch"):
            assert getattr(resumed.state, name) == getattr(whole.state, name), name
    return whole


@pytest.mark.parametrize("case", QUICK_CASES)
def test_the_middle_and_the_end_of_an_epoch(trainer_of, case):
    settings, stop = QUICK_CASES[case]
    whole = assert_resumes(trainer_of, [stop], **settings)
    assert whole.state.global_step == 6
    assert bool(whole.zero_shot_results) == settings.get("eval_on_start", False)
    assert all(math.isfinite(entry["loss"]) for entry in steps(whole))


@pytest.mark.parametrize("case", ITERABLE_CASES)
def test_an_iterable_dataset(trainer_of, case):
    settings, stop = ITERABLE_CASES[case]
    whole = assert_resumes(trainer_of, [stop], iterable=True, **{"max_steps": 7, **settings})
    assert whole.state.global_step == 7


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES)
def test_more_settings(trainer_of, case):
    assert_resumes(trainer_of, [2, 3], **SLOW_CASES[case])


def test_a_run_that_has_ended_resumes_to_its_end(trainer_of):
    """In the middle of an epoch as well, where a step more could be taken."""
    for name, settings in {"epoch": {}, "middle": {"max_steps": 4}}.items():
        whole = trainer_of(name, **settings)
        whole.train()
        again = trainer_of(name, **settings)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == whole.state.global_step
        assert_same_weights(whole, again)
