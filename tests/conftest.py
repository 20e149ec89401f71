"""Fixtures of all tests. Nothing here touches the network."""

import copy
import gc
import os


# Every worker of pytest-xdist computes on one core. NumPy looks when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTConfig
from tests.support.browser import open_browser
from tests.support.chat_endpoint import serve
from tests.support.device import USE_CPU
from tests.support.families import family
from tests.support.tiny import TINY_CLIP, make_dataset


torch.set_num_threads(1)


def pytest_collection_finish(session):
    """Trainer collects garbage in every run, and without this it searches all that was imported every time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Files of tests need not outlive a power cut, and waiting for the disk takes a tenth of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def loaded_clip():
    return CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)


@pytest.fixture
def clip(loaded_clip):
    """A CLIPModel of random weights: two layers, 64 wide, 16 x 16 pixels, a vocabulary of 300."""
    return copy.deepcopy(loaded_clip)


@pytest.fixture(scope="session")
def processor():
    return AutoProcessor.from_pretrained(TINY_CLIP)


@pytest.fixture(scope="session")
def spelling_clip(tmp_path_factory):
    """The folder of a model whose tokenizer can write every class name; that of `clip` knows few words."""
    folder = tmp_path_factory.mktemp("spelling_clip")
    for part in family("clip", max_length=96):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def dataset():
    return make_dataset()


@pytest.fixture
def config(tmp_path):
    """Makes a StarFTConfig for a quick and quiet run, on the CPU unless `make gpu` runs the tests."""

    def make(**settings):
        defaults = {
            "output_dir": str(tmp_path / "output"),
            "reference_cache_dir": str(tmp_path / "features"),
            "per_device_train_batch_size": 8,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": USE_CPU,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        return StarFTConfig(**defaults | settings)

    return make


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def endpoint(monkeypatch):
    """A language model on loopback."""
    # The tests are offline, and huggingface_hub means loopback by that as well.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve() as running:
        yield running
