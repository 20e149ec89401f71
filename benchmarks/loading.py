"""What surrounds the step: loading images, and filling the text cache."""

import dataclasses
import tempfile
import time

import torch

from benchmarks.setup import CAPTION_TEMPLATE, class_names, make_images, make_scene
from benchmarks.steps import make_trainer
from starft_hf import SpuriosityPool
from starft_hf.data.captions import CaptionBank
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference import FrozenReference
from starft_hf.reference.texts import CachedTexts
from starft_hf.utils.store import FeatureStore


def loading_seconds(batch_size: int, batches: int = 4) -> float:
    """Seconds per batch of the trainer's own data loader, in one process, crops included."""
    scene = make_scene("ViT-B/32", num_classes=10, num_images=1)
    scene = dataclasses.replace(scene, dataset=make_images(10, batch_size * batches, image_size=256))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(scene, folder, reference_cache="none", per_device_train_batch_size=batch_size)
        trainer.train_dataset.make.preprocessor.crop_scale = (0.9, 1.0)
        start = time.perf_counter()
        count = sum(1 for _ in trainer.get_train_dataloader())
        return (time.perf_counter() - start) / count


def captions_per_second(num_classes: int = 10) -> dict[str, float]:
    """Captions per second while the text cache of the built-in pool is filled, with and without shared beginnings."""
    scene = make_scene("ViT-B/32", num_classes=num_classes, num_images=1)
    bank = CaptionBank(class_names(num_classes), [CAPTION_TEMPLATE], SpuriosityPool.load("background"))
    rates = {}
    for name, packed in (("packed", True), ("padded", False)):
        live = FrozenReference(scene.model, DualEncoder.of(scene.model, scene.processor, packed=packed))
        with tempfile.TemporaryDirectory() as folder:
            texts = CachedTexts(bank, FeatureStore(folder), progress=False)
            start = time.perf_counter()
            texts.prepare(live, torch.device("cpu"))
            rates[name] = texts.size[0] / (time.perf_counter() - start)
    return rates
