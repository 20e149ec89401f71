"""Runs that must come out the same however many processes share them.

Also a script: `scenarios.py FOLDER SETTINGS NAME...`, with `{}` in a setting "resume" for the name.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.models.adapters import base_model_of
from starft_hf.models.fsdp import full_tensor
from starft_hf.reference import FrozenReference
from starft_hf.utils.collectives import rank, world_size
from tests.support.families import towers
from tests.support.launch import end_quietly
from tests.support.multi_label import make_multi_label_dataset
from tests.support.tiny import CHECKPOINTING, MANY_NAMES, TINY_CLIP, captioned, make_dataset


GLOBAL_BATCH = 12

# Settings of the run, and the number of training images: 27 leave 3 for the last batch, 31 leave 7.
SCENARIOS = {
    "contrastive star": ({}, 31),
    "contrastive kl, one process without rows": ({"regularizer": "kl"}, 27),
    "live reference": ({"reference_cache": "none"}, 31),
    "cross-entropy star": ({"base_loss": "cross_entropy"}, 31),
    "cross-entropy kl, accumulated": (
        {"base_loss": "cross_entropy", "regularizer": "kl", "gradient_accumulation_steps": 2},
        27,
    ),
    "accumulated": ({"gradient_accumulation_steps": 2}, 31),
    "full cache": ({"crop_scale": None, "reference_cache": "full"}, 31),
    "in chunks": ({"mini_batch_size": 2, "crop_scale": None}, 31),
    # Three chunks, and one or two distinct captions.
    "in chunks, two classes": (
        {"mini_batch_size": 2, "regularizer": "none", "classes": 2, "crop_scale": None},
        31,
    ),
    "no regularizer": ({"regularizer": "none"}, 27),
    "cross-entropy alone": ({"base_loss": "cross_entropy", "regularizer": "none"}, 27),
    "cross-entropy, checkpointed": ({"base_loss": "cross_entropy", CHECKPOINTING: True}, 31),
    "adapter": ({"peft_config": "lora"}, 31),
    "adapter, cross-entropy": ({"peft_config": "lora", "base_loss": "cross_entropy"}, 31),
    "evaluated and trained before": ({"evaluated_before": True, "trained_before": True}, 31),
    "conditional, one process without rows": ({"regularizer": "conditional"}, 27),
    "cross-entropy conditional, accumulated": (
        {"base_loss": "cross_entropy", "regularizer": "conditional", "gradient_accumulation_steps": 2},
        31,
    ),
    "conditional, live, in chunks": (
        {"regularizer": "conditional", "reference_cache": "none", "mini_batch_size": 2},
        31,
    ),
    "conditional, not all classes": ({"regularizer": "conditional", "reg_max_classes": 3, "classes": 24}, 27),
    "weighted star": ({"reweight": "attribution"}, 27),
    "weighted conditional, adapter": (
        {"reweight": "attribution", "regularizer": "conditional", "peft_config": "lora"},
        31,
    ),
    "weighted cross-entropy alone": (
        {"reweight": "attribution", "base_loss": "cross_entropy", "regularizer": "none"},
        31,
    ),
    "captions without labels": ({"regularizer": "star", "caption_column": "caption"}, 27),
    "group-balanced, of some images": (
        {"train_sampling_strategy": "group_balanced", "max_train_samples": 31, "data_seed": 3},
        36,
    ),
    "frozen text, rates by layer": (
        {
            **{"freeze": ["text", "vision.embeddings"], "layer_decay": 0.5, "max_logit_scale": 20.001},
            **{"learning_rates": {"projections": 3.0, "logit_scale": 20.0}, "mini_batch_size": 2},
        },
        31,
    ),
    "frozen text, cross-entropy": ({"freeze": ["text"], "base_loss": "cross_entropy", "layer_decay": 0.5}, 27),
    "frozen adapter": (
        {"freeze": ["text"], "peft_config": "lora", "regularizer": "conditional", "layer_decay": 0.5},
        31,
    ),
    "multi-label kl": ({"base_loss": "multi_label", "regularizer": "kl", "label_smoothing_factor": 0.1}, 31),
    "multi-label, in chunks, one process without rows": (
        {
            "base_loss": "multi_label",
            "mini_batch_size": 2,
            "reference_cache": "none",
            "caption_template": ["a photo of a {}.", "a blue {}."],
            "gradient_accumulation_steps": 2,
        },
        27,
    ),
    "multi-label, adapter": ({"base_loss": "multi_label", "peft_config": "lora", "crop_scale": None}, 27),
    "multi-label, frozen text": (
        {
            "base_loss": "multi_label",
            "freeze": ["text"],
            "caption_template": ["a photo of a {}.", "a blue {}."],
            "gradient_accumulation_steps": 2,
        },
        27,
    ),
    "batch norm": ({"towers": ("efficientnet", "bert"), "crop_scale": None, "reference_cache": "none"}, 31),
}


class Recorder(StarFTTrainer):
    """Keeps the gradients of the first step, as the optimizer is about to see them."""

    gradients = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.gradients is None and self.accelerator.sync_gradients:
            self.gradients = {
                name: full_tensor(value.grad).clone().squeeze()
                for name, value in self.model.named_parameters()
                if value.grad is not None
            }
        return loss


def make_trainer(name, folder, **overrides):
    """The trainer of a scenario, for as many processes as there are."""
    settings, size = SCENARIOS[name]
    settings = {**settings, **overrides}
    model, processor = _model_of(settings.pop("towers", None))
    peft_config = settings.pop("peft_config", None)
    sharded = settings.pop("sharded", False)
    evaluated_before, trained_before = (settings.pop(name, False) for name in ("evaluated_before", "trained_before"))
    number = settings.pop("classes", None)
    classes = {} if number is None else {"class_names": MANY_NAMES[:number]}
    args = StarFTConfig(
        **{
            "output_dir": str(folder / "output"),
            "reference_cache_dir": str(folder / "features"),
            "per_device_train_batch_size": GLOBAL_BATCH // world_size_of_launch(),
            "per_device_eval_batch_size": 4,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "reg_weight": 5.0,
            "reg_schedule": "linear",
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "group_column": "group",
            **settings,
        }
    )
    torch.manual_seed(0)
    make = captioned if args.caption_column else make_dataset
    make = make_multi_label_dataset if args.base_loss == "multi_label" else make
    trainer = Recorder(
        model,
        args,
        make(size, **classes),
        eval_dataset=make(13, seed=5, **classes),
        processing_class=processor,
        spuriosity=["{} in the snow.", "{} at night.", "{} on a beach."],
        peft_config=peft_config,
    )
    if sharded:
        shard(trainer, sharded)
    if evaluated_before:
        trainer.evaluate()
    if trained_before:
        trainer.train()
    return trainer


def _model_of(names):
    """A model of the towers of these names, or else `TINY_CLIP`, and its processor."""
    from transformers import AutoProcessor, CLIPModel

    if names is not None:
        return towers(*names, torch.float64)
    return CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float64), AutoProcessor.from_pretrained(TINY_CLIP)


def shard(trainer, state_dict_type):
    """Switch FSDP 2 on. On CPUs Accelerate does not offer it, though all that it calls works there."""
    from transformers import CLIPModel

    model = base_model_of(trainer.model)
    AcceleratorState.distributed_type = property(lambda self: DistributedType.FSDP, lambda self, value: None)
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["CLIPEncoderLayer" if isinstance(model, CLIPModel) else "BertLayer"],
        state_dict_type=state_dict_type,
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    trainer.is_fsdp_enabled = True


def world_size_of_launch():
    """Processes of this launch, known before torch.distributed is."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def environment():
    """That of this process, with one thread each for the processes that it starts."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(name, folder, resume=None, **overrides):
    """Run a scenario and write what came out to `folder`: losses, first gradients, final weights, metrics."""
    folder = Path(folder)
    trainer = make_trainer(name, folder, **overrides)
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    trainer.save_model(str(folder / "model"))
    weights = {key: full_tensor(value).clone().squeeze() for key, value in trainer.model.state_dict().items()}
    keys = ("step", "loss", "base_loss", "reg_loss", "grad_norm", "logit_scale")
    steps = [{key: entry[key] for key in keys} for entry in trainer.state.log_history if "base_loss" in entry]
    forwards = trainer.reference.info.forwards if trainer.reference is not None else 0
    assert world_size() == world_size_of_launch()
    if isinstance(trainer.reference, FrozenReference):
        assert not any(isinstance(value, DTensor) for value in trainer.reference.model.parameters())
    outcome = {
        "sharded": any(isinstance(value, DTensor) for value in trainer.model.parameters()),
        "steps": steps,
        "metrics": metrics,
        "forwards": forwards,
        "processes": world_size(),
    }
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "weights.safetensors")
        save_file(trainer.gradients, folder / "gradients.safetensors")
        (folder / "run.json").write_text(json.dumps(outcome))
    return trainer


if __name__ == "__main__":
    # As in conftest.py.
    gc.freeze()
    target, settings, *names = sys.argv[1:]
    overrides = json.loads(settings)
    resume = overrides.pop("resume", None)
    for scenario in names:
        run(scenario, Path(target) / scenario, resume and resume.format(scenario), **overrides)
    end_quietly(sharded="sharded" in overrides)
