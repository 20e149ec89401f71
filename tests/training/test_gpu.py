"""What only a GPU shows: mixed precision, NCCL, FSDP 2 and pinned memory. `make gpu` runs these."""

import json
import math

import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTTrainer
from tests.support.launch import torchrun
from tests.support.tiny import TINY_CLIP, make_dataset


pytestmark = pytest.mark.gpu


def losses_of(config, **settings):
    model = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(TINY_CLIP)
    # At the rate of `config` the loss rises twelvefold in three steps, and differences with it.
    args = config(use_cpu=False, learning_rate=1e-4, **settings)
    trainer = StarFTTrainer(model, args, make_dataset(), processing_class=processor)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("settings", [{"bf16": True}, {"bf16": True, "torch_compile": True}, {"fp16": True}])
@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_mixed_precision_stays_near_float32(config, settings, mini_batch_size):
    expected = losses_of(config)
    found = losses_of(config, mini_batch_size=mini_batch_size, **settings)
    assert all(map(math.isfinite, found))
    assert found[0] == pytest.approx(expected[0], rel=0.02)
    if "fp16" not in settings:
        # The scaler of float16 skips the first steps, until its scale is low enough.
        assert found == pytest.approx(expected, rel=0.05)


def test_pinned_memory_changes_nothing(config):
    workers = {"dataloader_num_workers": 2}
    pinned = losses_of(config, dataloader_pin_memory=True, **workers)
    assert pinned == losses_of(config, dataloader_pin_memory=False, **workers)


@pytest.mark.parametrize("kind", ["nccl", "fsdp"])
def test_one_process_of_a_launch_equals_one_without(kind, tmp_path):
    def found(name, processes):
        module = ["-m", "tests.support.gpu_run", name, str(tmp_path / name)]
        done = torchrun(processes, *module)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.rpartition("found ")[2].splitlines()[0])

    launched, alone = found(kind, 1), found("plain", 1)
    assert launched["backend"] == "nccl"
    assert launched["sharded"] == (kind == "fsdp")
    assert launched["losses"] == pytest.approx(alone["losses"], rel=1e-4)
