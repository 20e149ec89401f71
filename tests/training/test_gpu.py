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
    """The two parts of the loss, step by step: their weighted sum shows mostly the noise of the second."""
    model = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(TINY_CLIP)
    # At the rate of `config` the loss rises twelvefold in three steps, and differences with it.
    args = config(use_cpu=False, learning_rate=1e-4, **settings)
    trainer = StarFTTrainer(model, args, make_dataset(), processing_class=processor)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [[entry[part] for entry in logged] for part in ("base_loss", "reg_loss")]


@pytest.mark.parametrize("settings", [{"bf16": True}, {"bf16": True, "torch_compile": True}, {"fp16": True}])
@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_mixed_precision_stays_near_float32(config, settings, mini_batch_size):
    expected = losses_of(config)
    found = losses_of(config, mini_batch_size=mini_batch_size, **settings)
    assert all(map(math.isfinite, found[0] + found[1]))
    # The scaler of float16 skips the first steps, until its scale is low enough.
    steps = 1 if "fp16" in settings else 3
    # Without training, the third loss is a fifth higher, and there is no divergence.
    assert found[0][:steps] == pytest.approx(expected[0][:steps], rel=0.02)
    assert found[1][:steps] == pytest.approx(expected[1][:steps], abs=0.01)


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
