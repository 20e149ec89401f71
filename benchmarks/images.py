"""Images per second of one process that loads them: as a user of Trainer writes it by hand, and as StarFTTrainer does.

`python -m benchmarks.images` writes IMAGES.md, or IMAGES-TORCHVISION.md where torchvision is installed, in less than 5
minutes on 2 cores.
"""

import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor
from transformers.utils import is_torchvision_available

from benchmarks.photos import photo
from benchmarks.setup import Scene, class_names, make_scene
from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.data.images import random_crop_box


FILE = Path(__file__).parent / ("IMAGES-TORCHVISION.md" if is_torchvision_available() else "IMAGES.md")
BATCH_SIZE = 32
CROP_SCALE = (0.9, 1.0)
REPETITIONS = 5
QUALITY = 90

# Width and height, files, rows of an epoch, and what the two of ours should reach, as ratios to what is by hand.
SIZES = (((500, 375), 16, 512, 1.5, 2), ((1600, 1200), 8, 128, 3, 10), ((4000, 3000), 4, 64, 4, 40))
BY_HAND, SCALED, CACHED = "by hand", "scaled", "image_cache"


def make_photos(folder: Path, size: tuple[int, int], files: int, rows: int) -> Dataset:
    """JPEGs of photo-like noise in a folder, as a dataset whose rows share them."""
    paths = [folder / f"{number}.jpg" for number in range(files)]
    for number, path in enumerate(paths):
        photo(*size, seed=number).save(path, quality=QUALITY)
    columns = {"image": [str(paths[row % files]) for row in range(rows)], "label": [row % 10 for row in range(rows)]}
    return Dataset.from_dict(columns, Features(image=Image(), label=ClassLabel(names=class_names(10))))


def with_transform(dataset: Dataset, image_processor: Any) -> Dataset:
    """Full decode, random resized crop, and the image processor, in a transform of the dataset."""
    generator = np.random.default_rng(0)

    def crop(image: PILImage.Image) -> PILImage.Image:
        box = random_crop_box(*image.size, CROP_SCALE, generator)
        return image.crop(box).resize((224, 224), PILImage.Resampling.BICUBIC)

    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        images = [crop(image.convert("RGB")) for image in rows["image"]]
        pixels = image_processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": rows["label"]}

    return dataset.with_transform(transform)


def by_hand(dataset: Dataset, image_processor: Any) -> Iterable[Any]:
    """A loader of batches with one process."""
    rows: Any = with_transform(dataset, image_processor)
    return DataLoader(rows, BATCH_SIZE, shuffle=True, num_workers=1, persistent_workers=True)


def ours(scene: Scene, dataset: Dataset, folder: Path, image_cache: str | None) -> tuple[Iterable[Any], float]:
    """The batches of a trainer, as the vision tower gets them, and the seconds that its cache of images took."""
    args = StarFTConfig(
        str(folder / "output"),
        regularizer="none",
        crop_scale=CROP_SCALE,  # type: ignore[arg-type]
        image_cache=image_cache,
        per_device_train_batch_size=BATCH_SIZE,
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = StarFTTrainer(scene.model, args, dataset, processing_class=scene.processor)
    start = time.perf_counter()
    trainer.train_dataset.prepare(args.device)
    seconds = time.perf_counter() - start

    loader = trainer.get_train_dataloader()

    class Batches:
        def __iter__(self) -> Any:
            for batch in loader:
                yield trainer.encoder.normalized(batch["pixel_values"])

    return Batches(), seconds


def images_per_second(batches: Iterable[Any], rows: int) -> float:
    """Of a whole epoch."""
    start = time.perf_counter()
    for _ in batches:
        pass
    return rows / (time.perf_counter() - start)


def measure(scene: Scene, size: tuple[int, int], files: int, rows: int) -> tuple[dict[str, list[float]], str]:
    """Images per second of every variant, taken in turn, and a sentence about the files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = make_photos(folder, size, files, rows)
        kilobytes = statistics.mean(path.stat().st_size for path in folder.glob("*.jpg")) / 1000
        scaled, _ = ours(scene, dataset, folder, None)
        cached, seconds = ours(scene, dataset, folder, str(folder / "cache"))
        variants = {BY_HAND: by_hand(dataset, scene.processor.image_processor), SCALED: scaled, CACHED: cached}
        bytes_kept = sum(path.stat().st_size for path in (folder / "cache").glob("*.bin")) / rows / 1000
        about = (
            f"{size[0]} x {size[1]}: files of {kilobytes:,.0f} KB; the cache took {1000 * seconds / rows:.0f} ms an "
            f"image and keeps {bytes_kept:,.0f} KB of it."
        )
        rates: dict[str, list[float]] = {variant: [] for variant in variants}
        for repetition in range(REPETITIONS + 1):
            # The other way round every other time, lest one always profits from what another has left behind.
            for variant in list(variants)[:: -1 if repetition % 2 else 1]:
                rate = images_per_second(variants[variant], rows)
                print(f"{size[0]} x {size[1]}: {variant} {rate:,.1f} images/s", flush=True)
                # The first time around the process that loads is started, and files and code are read.
                if repetition:
                    rates[variant].append(rate)
    return rates, about


def as_row(size: tuple[int, int], rates: dict[str, list[float]], wanted: tuple[float, float]) -> str:
    """A row of the table: medians, and ratios to what is by hand in the same repetition, with their range."""
    cells = [f"{statistics.median(rates[variant]):,.1f}" for variant in (BY_HAND, SCALED, CACHED)]
    for variant, at_least in zip((SCALED, CACHED), wanted, strict=True):
        ratios = [ours / hand for ours, hand in zip(rates[variant], rates[BY_HAND], strict=True)]
        middle = statistics.median(ratios)
        cells.append(f"{middle:.1f} ({min(ratios):.1f} to {max(ratios):.1f}), target {at_least:g}")
    return f"| {size[0]} x {size[1]} | {' | '.join(cells)} |"


def main() -> None:
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    scene = make_scene("ViT-B/32", 10, 1)
    # The class that transformers loads, which resizes with torchvision where it is installed.
    scene.processor.image_processor = CLIPImageProcessor()
    versions = {"Pillow": PILImage.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    if is_torchvision_available():
        versions["torchvision"] = importlib.metadata.version("torchvision")
    lines = [
        "# The input pipeline",
        "",
        f"By `python -m benchmarks.images`, on {os.cpu_count()} cores ({platform.machine()}); "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
        "",
        f"Images per second of one process that loads, in batches of {BATCH_SIZE}: medians of {REPETITIONS} epochs in",
        f"turn, and ratios within each, with their range. JPEGs of photo-like noise, quality {QUALITY}. The image",
        f"processor is a `{type(scene.processor.image_processor).__name__}`.",
        "",
        "- by hand: decoded by `datasets`, a random resized crop and the image processor in `with_transform`",
        "- scaled: `StarFTTrainer` as it is by default, with captions, and normalized in the main process",
        "- image_cache: the same with `image_cache`, from the second epoch on",
        "",
        "| Size | By hand | Scaled | image_cache | Scaled / by hand | image_cache / by hand |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    about = []
    for size, files, rows, *wanted in SIZES:
        rates, sentence = measure(scene, size, files, rows)
        lines.append(as_row(size, rates, (wanted[0], wanted[1])))
        about += ["", sentence]
    FILE.write_text("\n".join([*lines, *about, ""]), encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
