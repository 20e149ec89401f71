"""A script that trains with an exponential average: `averages.py FOLDER SETTINGS`, with one process or several."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from starft_hf import ExponentialAverageCallback
from starft_hf.models.fsdp import full_tensor
from starft_hf.utils.collectives import rank
from tests.support.launch import end_quietly
from tests.support.scenarios import make_trainer


SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}


def whole_state(model):
    return {name: full_tensor(value).detach().clone().squeeze() for name, value in model.state_dict().items()}


def run(folder, resume=None, **overrides):
    """Train; write the averaged weights as the model holds them, and check that it gets its own ones back."""
    folder = Path(folder)
    trainer = make_trainer("contrastive star", folder, **SAVING, **overrides)
    average = ExponentialAverageCallback(0.7)
    trainer.add_callback(average)
    trainer.train(resume_from_checkpoint=resume)
    before = whole_state(trainer.model)
    with average.averaged(trainer.model):
        metrics = trainer.evaluate()
        averaged = whole_state(trainer.model)
    after = whole_state(trainer.model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not all(torch.equal(value, averaged[name]) for name, value in before.items())
    if rank() == 0:
        save_file(averaged, folder / "averaged.safetensors")
        (folder / "loss.json").write_text(json.dumps(metrics["eval_loss"]))


if __name__ == "__main__":
    overrides = json.loads(sys.argv[2])
    run(sys.argv[1], **overrides)
    end_quietly(sharded="sharded" in overrides)
