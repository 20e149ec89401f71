"""What the text cache of a large vocabulary takes: `python -m benchmarks.vocabulary` writes VOCABULARY.md.

Every class with every built-in template, by a text tower of one narrow layer: what is measured is what surrounds the
tower, which grows with the number of captions as the tower does.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import starft_hf
from benchmarks.memory import peak_of_process
from benchmarks.processes import RETURNS_MEMORY, in_fresh_process
from benchmarks.setup import CAPTION_TEMPLATE, TOY, class_names, make_scene
from starft_hf import SpuriosityPool
from starft_hf.data.captions import CaptionBank
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference import FrozenReference
from starft_hf.reference.texts import CachedTexts
from starft_hf.utils.store import FeatureStore


CLASSES = (1_000, 4_000, 20_000)
FILE = Path(__file__).parent / "VOCABULARY.md"


def filling(num_classes: int) -> dict[str, float]:
    """Captions, seconds, and GiB: of the embeddings, and of the process at its start and at its peak."""
    scene = make_scene(TOY, num_classes=10, num_images=1)
    bank = CaptionBank(class_names(num_classes), [CAPTION_TEMPLATE], SpuriosityPool.load("all"))
    live = FrozenReference(scene.model, DualEncoder.of(scene.model, scene.processor))
    with tempfile.TemporaryDirectory() as folder:
        texts, before = CachedTexts(bank, FeatureStore(folder), progress=False), peak_of_process()
        start = time.perf_counter()
        texts.prepare(live, torch.device("cpu"))
        seconds = time.perf_counter() - start
    captions, bytes_kept = texts.size
    return {
        "captions": captions,
        "seconds": seconds,
        "embeddings": bytes_kept / 2**30,
        "before": before,
        "peak": peak_of_process(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vocabulary", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES)
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    lines = [
        "# Large vocabularies",
        "",
        f"By `python -m benchmarks.vocabulary`, on {os.cpu_count()} CPU cores; starft_hf {starft_hf.__version__}, "
        f"torch {torch.__version__}.",
        "",
        f"Filling the text cache with every class in each of the {len(SpuriosityPool.load('all'))} built-in",
        "templates, by a text tower of one layer of 64 channels. Memory is that of the whole process at its peak.",
        "",
        "| Classes | Captions | Seconds | Captions per second | Embeddings, GiB | Before, GiB | Peak, GiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number in options.classes:
        found = in_fresh_process(RETURNS_MEMORY, filling, number)
        lines.append(
            f"| {number:,} | {found['captions']:,} | {found['seconds']:.0f} | "
            f"{found['captions'] / found['seconds']:,.0f} | {found['embeddings']:.2f} | {found['before']:.2f} | "
            f"{found['peak']:.2f} |"
        )
    options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
