"""`torch_compile=True`, on CPUs; test_gpu.py has the rest."""

from functools import partial

import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTTrainer
from tests.support.families import towers
from tests.support.tiny import TINY_CLIP, make_dataset


def of_clip():
    model = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(TINY_CLIP)


def losses_of(config, make, **settings):
    model, processor = make()
    before = {name: value.clone() for name, value in model.named_buffers()}
    trainer = StarFTTrainer(model, config(**settings), make_dataset(), processing_class=processor)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_clip, partial(towers, "resnet", "distilbert")], ids=["clip", "batch norm"])
def test_a_compiled_model_trains_alike(make, config):
    compiled = losses_of(config, make, torch_compile=True, torch_compile_backend="aot_eager")
    assert compiled == pytest.approx(losses_of(config, make), rel=1e-5)
