"""Processes that load data: as many as one likes, however they are started, and what becomes of a run without them."""

import os
import signal

import pytest
import torch
from transformers import TrainingArguments

from tests.support.resumed_run import make_trainer


SETTINGS = {"crop_scale": (0.5, 1.0), "eval_strategy": "no", "save_strategy": "no"}
CONTEXT = "dataloader_multiprocessing_context"
needs_context = pytest.mark.skipif(not hasattr(TrainingArguments, CONTEXT), reason="this transformers always forks")

CASES = [
    pytest.param({"dataloader_num_workers": 2}, id="2"),
    pytest.param({"dataloader_num_workers": 4}, id="4", marks=pytest.mark.slow),
    pytest.param({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, id="2, persistent"),
    pytest.param(
        {"dataloader_num_workers": 4, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4},
        id="4, persistent, far ahead",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"dataloader_num_workers": 2, CONTEXT: "spawn", "dataloader_persistent_workers": True},
        id="2, spawned, persistent",
        marks=[pytest.mark.slow, needs_context],
    ),
]


def trained(folder, **settings):
    trainer = make_trainer(folder, **{**SETTINGS, **settings})
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.model.state_dict()


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("without"), dataloader_num_workers=0)


@pytest.mark.parametrize("settings", CASES)
def test_workers_change_nothing(tmp_path, without, settings):
    losses, weights = trained(tmp_path, **settings)
    assert losses == without[0]
    for name, value in weights.items():
        assert torch.equal(value, without[1][name]), name


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    # Seconds that a worker is waited for at the end.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)

    def transform(image):
        if torch.utils.data.get_worker_info().id == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return image

    trainer = make_trainer(tmp_path, dataloader_num_workers=2, **SETTINGS)
    trainer.train_dataset.make.preprocessor.transform = transform
    with pytest.raises(RuntimeError, match=r"a process that loads data died .*dataloader_num_workers"):
        trainer.train()
