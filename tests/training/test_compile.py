"""`torch_compile=True` and mixed precision, on what there is to run them on."""

import math

import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTTrainer
from tests.support.tiny import TINY_CLIP, make_dataset


def losses_of(config, **settings):
    model = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(TINY_CLIP)
    trainer = StarFTTrainer(model, config(**settings), make_dataset(), processing_class=processor)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_a_compiled_model_trains_alike(config):
    compiled = losses_of(config, torch_compile=True, torch_compile_backend="aot_eager")
    assert compiled == pytest.approx(losses_of(config), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{"bf16": True}, {"bf16": True, "torch_compile": True}, {"fp16": True}])
@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_mixed_precision_on_a_gpu_stays_near_float32(config, settings, mini_batch_size):
    expected = losses_of(config, use_cpu=False)
    found = losses_of(config, use_cpu=False, mini_batch_size=mini_batch_size, **settings)
    assert all(map(math.isfinite, found))
    assert found == pytest.approx(expected, rel=0.05)
