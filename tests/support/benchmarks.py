"""Images, shards and constants for the tests of the benchmarks."""

import importlib.util
import io
import tarfile

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image as PILImage

from starft_hf.evaluation.catalog import load_benchmark


# Not importorskip: only one file of the library is read, and tests run without what the library itself imports.
needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="needs open_clip_torch")

# Indices into the classes of ImageNet.
IMAGENET_R, IMAGENET_A = (load_benchmark(name).classes.args[0] for name in ("imagenet-r", "imagenet-a"))
REGIONS = ["Asia", "Europe", "Africa", "Americas", "Oceania", "Other"]


def random_images(count, mode="RGB", size=24, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, size, size, 3)
    return [PILImage.fromarray(noise).convert(mode) for noise in rng.integers(0, 256, shape, dtype=np.uint8)]


def shards(folder, samples):
    """The dataset that `datasets` makes of shards in the form of clip_benchmark: a list of {ending: content}."""
    path = folder / "0.tar"
    with tarfile.open(path, "w") as tar:
        for row, sample in enumerate(samples):
            for ending, content in sample.items():
                file = tarfile.TarInfo(f"s{row:07d}.{ending}")
                file.size = len(content)
                tar.addfile(file, io.BytesIO(content))
    return load_dataset("webdataset", data_files={"test": str(path)}, split="test", cache_dir=str(folder / "cache"))


def encoded(image, ending):
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "jpeg"}.get(ending, ending))
    return buffer.getvalue()


def labelled_shards(folder, labels, ending, mode="RGB"):
    images = random_images(len(labels), mode)
    return shards(
        folder,
        [
            {ending: encoded(image, ending), "cls": str(label).encode()}
            for image, label in zip(images, labels, strict=True)
        ],
    )
