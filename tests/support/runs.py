"""What tests look at in runs, and signals sent in the middle of them."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback


FSDP = {"sharded": "FULL_STATE_DICT"}


def steps(trainer):
    return [entry for entry in trainer.state.log_history if "base_loss" in entry]


def without_timing(log):
    """What a log says of training and evaluation."""
    timing = ("runtime", "per_second", "preparation_time", "flos", "train_loss")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timing)}
        for entry in log
        if "train_runtime" not in entry
    ]


def assert_same_weights(left, right, **tolerance):
    for name, value in left.model.state_dict().items():
        torch.testing.assert_close(
            value, right.model.state_dict()[name], msg=name, **tolerance or {"rtol": 0, "atol": 0}
        )


def assert_same_runs(left, right, *, gradients=True):
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (left, right))
    assert [step["step"] for step in one["steps"]] == [step["step"] for step in other["steps"]]
    for step, expected in zip(other["steps"], one["steps"], strict=True):
        assert step == pytest.approx(expected, abs=1e-9, rel=1e-9)
    for kind in ("gradients", "weights") if gradients else ("weights",):
        expected, found = (load_file(folder / f"{kind}.safetensors") for folder in (left, right))
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-9, msg=f"{kind} {key}")
    timing = ("runtime", "samples_per_second", "steps_per_second", "preparation_time")
    expected, found = (
        {key: value for key, value in run["metrics"].items() if not key.endswith(timing)} for run in (one, other)
    )
    assert found == pytest.approx(expected, abs=1e-9)


class SignalAt(TrainerCallback):
    """Sends SIGTERM to this process in a step."""

    def __init__(self, step, event="on_pre_optimizer_step", only=None):
        self.step = step
        self.only = only
        setattr(self, event, self._send)

    def _send(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.only in (None, args.process_index):
            self.send()

    def send(self):
        os.kill(os.getpid(), signal.SIGTERM)
