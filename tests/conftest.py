"""Tiny models and data sets that the tests share. Nothing here touches the network."""

import atexit
import csv
import os
import shutil
import tempfile


# Nothing of a user's caches is read, and nothing is left in them.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="starft-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoProcessor, CLIPModel, TrainerCallback

from starft_hf import StarFTConfig
from tests.spuriosity.endpoint import serve


atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
torch.set_num_threads(1)

TINY_CLIP = Path(__file__).parent / "golden" / "contrastive_kl" / "model"
CLASS_NAMES = ["owl", "truck", "violin", "fern"]
# transformers 5.23 renamed it; the former name warns there.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(StarFTConfig, "activation_checkpointing") else "gradient_checkpointing"
)


@pytest.fixture
def clip():
    """A CLIPModel of random weights: two layers, 64 wide, 16 x 16 pixels, a vocabulary of 300."""
    return CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)


@pytest.fixture(scope="session")
def processor():
    return AutoProcessor.from_pretrained(TINY_CLIP)


def make_dataset(size=24, seed=0, class_names=CLASS_NAMES, group_names=("left", "right"), image_size=24):
    """Noisy pictures whose mean colour tells the class, with labels in turn and groups at random."""
    rng = np.random.default_rng(seed)
    labels = [row % len(class_names) for row in range(size)]
    images = []
    for label in labels:
        colour = 40 + 50 * np.array([label % 2, label // 2 % 2, label // 4 % 2])
        pixels = colour + rng.integers(0, 60, (image_size, image_size, 3))
        images.append(PILImage.fromarray(pixels.astype(np.uint8)))
    groups = rng.integers(len(group_names), size=size).tolist()
    features = Features(
        image=Image(),
        label=ClassLabel(names=list(class_names)),
        group=ClassLabel(names=list(group_names)),
        note=Value("string"),
    )
    return Dataset.from_dict(
        {"image": images, "label": labels, "group": groups, "note": [f"note {row}" for row in range(size)]},
        features=features,
    )


class StopAt(TrainerCallback):
    """Ends training after a step, without an error."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def write_folder(folder, class_names=CLASS_NAMES, size=16, seed=0, split="train"):
    """Pictures in one folder per class, with their places in a metadata file."""
    rows = make_dataset(size, seed, class_names)
    lines = []
    for index, row in enumerate(rows):
        name = f"{class_names[row['label']]}/{index}.png"
        path = folder / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
        lines.append((name, rows.features["group"].int2str(row["group"])))
    with (folder / split / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "place"), *lines])


@pytest.fixture
def dataset():
    return make_dataset()


@pytest.fixture
def config(tmp_path):
    """Makes a StarFTConfig for a quick and quiet run on the CPU."""

    def make(**settings):
        defaults = {
            "output_dir": str(tmp_path / "output"),
            "reference_cache_dir": str(tmp_path / "features"),
            "per_device_train_batch_size": 8,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        return StarFTConfig(**defaults | settings)

    return make


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail(f"none of {', '.join(names)} is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        # The sandbox does not work for root, and only pages of our own are opened.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def endpoint(monkeypatch):
    """A language model on loopback."""
    # The tests are offline, and huggingface_hub means loopback by that as well.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve() as running:
        yield running
