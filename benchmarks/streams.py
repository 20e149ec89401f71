"""`python -m benchmarks.streams`: what a row of an iterable dataset costs a process, in CPU time.

The figures of docs/large_datasets.md. Nothing here depends on a GPU or on the network.
"""

import io
import json
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from datasets import Dataset, IterableDataset
from PIL import Image
from transformers import CLIPImageProcessor

from starft_hf.data.columns import ImageColumns
from starft_hf.data.examples import ImageExampleMaker, IterableExamples
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.shards import read_parquet, read_webdataset
from starft_hf.data.shuffling import Shuffle
from starft_hf.data.streams import Share


ROWS = 4000


def jpeg(size: tuple[int, int] = (500, 375)) -> bytes:
    """A photograph's worth of detail: noise on a coarse grid, enlarged."""
    grid = np.random.default_rng(0).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> IterableDataset:
    """Rows of a tar file whose samples have these members."""
    with tarfile.open(path, "w") as tar:
        for row in range(ROWS):
            for ending, content in members.items():
                entry = tarfile.TarInfo(f"{row:09}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return read_webdataset({"train": [str(path)]}, streaming=True).splits["train"]


def rows_of_every_kind(folder: Path) -> dict[str, IterableDataset]:
    """The same rows as shards of several kinds, and as paths in memory."""
    image = jpeg()
    (folder / "0.jpg").write_bytes(image)
    pd.DataFrame({"image": [image] * ROWS, "label": 0}).to_parquet(folder / "a.parquet")
    said = json.dumps(
        {"caption": "a photo of an owl", "url": "https://example.org/0.jpg", "status": "success"}
    ).encode()
    paths = Dataset.from_dict({"image": [str(folder / "0.jpg")] * ROWS, "label": [0] * ROWS})
    return {
        "tar: jpg, cls": tar_of(folder / "a.tar", {"jpg": image, "cls": b"0"}),
        "tar: jpg, txt, json": tar_of(folder / "b.tar", {"jpg": image, "txt": b"a photo of an owl", "json": said}),
        "Parquet": read_parquet({"train": [str(folder / "a.parquet")]}, streaming=True).splits["train"],
        "paths": paths.cast_column("image", datasets.Image()).to_iterable_dataset(),
    }


def examples_of(rows: IterableDataset, start: int = 0) -> IterableExamples:
    """Training examples of 224 x 224 pixels, of which those before `start` are skipped."""
    make = ImageExampleMaker(ImageColumns("image", None, None, None, None), ImagePreprocessor(CLIPImageProcessor()))
    examples = IterableExamples(rows, make, shuffle=Shuffle(0, 100))
    examples.share = Share(start=start)
    return examples


def per_row(rows: Callable[[], Iterable[Any]], number: int) -> float:
    """Microseconds of CPU time per row, the fastest of 3."""

    def once() -> float:
        start = time.process_time()
        assert sum(1 for _ in islice(rows(), number)) == number
        return (time.process_time() - start) / number * 1e6

    return min(once() for _ in range(3))


def bytes_per_row(read: Callable[[], Any], number: int) -> float:
    """Memory at its peak per row of what `read` gives, without that of arrays."""
    tracemalloc.start()
    kept = read()
    peak = tracemalloc.get_traced_memory()[1] / number
    tracemalloc.stop()
    del kept
    return peak


def main() -> None:
    """Print the table."""
    print(f"The image has {len(jpeg()) / 1000:.0f} kB.\n")
    print("| Rows | Go through | Skip in a resumed run | Open and prepare |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        for kind, rows in rows_of_every_kind(Path(folder)).items():
            examples = examples_of(rows)
            through = per_row(partial(Shuffle(0, 100).rows, examples.dataset, 0, ["image"]), ROWS)
            skipped = per_row(partial(iter, examples_of(rows, start=ROWS)), ROWS)
            opened = per_row(partial(iter, examples), ROWS // 5)
            print(f"| {kind} | {through:.0f} µs | {skipped:.0f} µs | {opened / 1000:.1f} ms |", flush=True)
        shards = {"train": [str(Path(folder) / "b.tar")]}
        rows = read_webdataset(shards, streaming=True).splits["train"].select_columns(["image"])
        held, listed = (
            bytes_per_row(lambda: list(rows.cast_column("image", datasets.Image(decode=False))), ROWS),
            bytes_per_row(lambda: read_webdataset(shards), ROWS),
        )
    print(f"\nA row of a tar file has {held / 1000:.1f} kB in a buffer and {listed / 1000:.1f} kB in a list.")


if __name__ == "__main__":
    main()
