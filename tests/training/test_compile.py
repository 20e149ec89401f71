"""`torch_compile=True`, on CPUs; test_gpu.py has the rest."""

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
