"""How processes share the rows of iterable datasets: every row once in a pass, however shards are cut."""

import os
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import psutil
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from starft_hf import StarFTTrainer
from starft_hf.data import streams
from starft_hf.data.columns import ImageColumns
from starft_hf.data.examples import ImageExampleMaker, IterableExamples
from starft_hf.data.images import ImagePreprocessor
from starft_hf.data.shards import read_parquet, read_webdataset
from starft_hf.data.shuffling import Shuffle
from starft_hf.data.streams import Share, are_rows_cheap
from tests.support.shards import encoded, write_tar, write_uneven


ROWS = 23


def in_memory(number=3):
    return Dataset.from_dict({"row": range(ROWS)}).to_iterable_dataset(num_shards=number)


class Rows(IterableExamples):
    """The rows themselves, in place of examples of their images."""

    def __init__(self, dataset, share, buffer_size=5):
        self.dataset, self.share, self.shuffle = dataset, share, Shuffle(0, buffer_size)
        self.columns = SimpleNamespace(used=["row"])
        self.make = SimpleNamespace(in_epoch=lambda number: None)

    def example(self, row, index, make=None):
        return row["row"]

    def _blank(self, make):
        return {"image": {}, "row": -1}


def steps(dataset, share, workers, number=20, **settings):
    """The rows of the first steps of a process, as a data loader gives them."""
    loader = DataLoader(
        Rows(dataset, share, **settings), batch_size=share.batch_size, num_workers=workers, collate_fn=list
    )
    return list(islice(loader, number))


@pytest.mark.parametrize("buffer_size", [0, 5])
@pytest.mark.parametrize("shards", [1, 3, 5])
def test_processes_and_workers_share_one_order(shards, buffer_size):
    expected = steps(in_memory(shards), Share(6), 0, buffer_size=buffer_size)
    order = [row for batch in expected for row in batch]
    for start in (0, ROWS, 2 * ROWS):
        assert Counter(order[start : start + ROWS]) == Counter(range(ROWS))
    ranks = [steps(in_memory(shards), Share(3, rank, 2), 2, buffer_size=buffer_size) for rank in range(2)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == expected


def test_steps_before_the_start_are_not_read():
    whole = steps(in_memory(), Share(3, 1, 2), 2)
    # In the first pass, and in the fifth: after the first, those before it are not even gone through.
    for start in (2, 17):
        resumed = steps(in_memory(), Share(3, 1, 2, start=start), 2)
        assert resumed == [[{"image": {}, "row": -1}] * 3] * start + whole[start:]


def shards_of(kind, folder, number=3):
    read = {"parquet": read_parquet, "webdataset": read_webdataset}[kind]
    return read({"train": write_uneven(folder, kind, (2,) * number)}, streaming=True).splits["train"]


def test_of_which_datasets_rows_are_cheap(tmp_path):
    plain = in_memory()
    for dataset in (
        plain,
        plain.select_columns(["row"]),
        *(shards_of(kind, tmp_path) for kind in ("parquet", "webdataset")),
    ):
        assert are_rows_cheap(dataset)
    others = load_dataset("parquet", data_files=str(tmp_path / "0.parquet"), split="train", streaming=True)
    for dataset in (
        *(plain.map(lambda row: row), plain.filter(lambda row: True), plain.take(3), plain.skip(3)),
        *(plain.shuffle(seed=0), concatenate_datasets([plain, plain]), plain.with_format("numpy"), others),
        Dataset.from_dict({"row": [0]}),
    ):
        assert not are_rows_cheap(dataset)


@pytest.mark.parametrize(
    ("number", "workers", "effect"),
    [(1, 4, "3 of them stay idle"), (5, 2, "rows of some occur more often"), (4, 2, None), (1, 0, None)],
)
def test_shards_that_cannot_be_divided_are_warned_of(number, workers, effect, monkeypatch):
    warned = []
    monkeypatch.setattr(streams.logger, "warning", lambda text, *given: warned.append(text % given))
    streams.warn_of_shards(in_memory(number).map(lambda row: row), workers)
    streams.warn_of_shards(in_memory(number), workers)
    assert len(warned) == (effect is not None)
    if effect:
        assert f"{number} shards for the {workers} workers of each process" in warned[0]
        assert f"so {effect}. Set dataloader_num_workers to a divisor of {number}" in warned[0]


def test_a_run_warns_of_shards(clip, processor, config, dataset, monkeypatch):
    """As of the one shard that a folder of images is for `load_dataset(..., streaming=True)`."""
    warned = []
    monkeypatch.setattr(streams.logger, "warning", lambda text, *given: warned.append(text % given))
    stream = dataset.to_iterable_dataset().map(lambda row: row, features=dataset.features)
    StarFTTrainer(clip, config(dataloader_num_workers=2), stream, processing_class=processor)
    assert "1 of them stay idle" in warned[0]


def test_words_as_labels_of_tar_files_need_names_before_anything_is_loaded(tmp_path, processor, config):
    with pytest.raises(
        ValueError, match=r"'label' of an iterable dataset are not known in advance; pass class_names="
    ):
        StarFTTrainer("nowhere", config(), shards_of("webdataset", tmp_path), processing_class=processor)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_memory_is_flat_over_100_000_rows(kind, tmp_path, processor):
    """That of the process and of each of its workers, from a fifth of the rows on."""
    blobs = [encoded(PILImage.new("RGB", (8, 8), (number, 0, 0))) for number in range(256)]
    suffix = {"parquet": "parquet", "webdataset": "tar"}[kind]
    first = tmp_path / f"0.{suffix}"
    if kind == "parquet":
        Dataset.from_dict({"image": [blobs[row % 256] for row in range(10_000)]}).to_parquet(first)
    else:
        write_tar(first, {f"{row}.png": blobs[row % 256] for row in range(10_000)})
    for number in range(1, 10):
        os.link(first, tmp_path / f"{number}.{suffix}")
    read = {"parquet": read_parquet, "webdataset": read_webdataset}[kind]
    rows = read({"train": sorted(map(str, tmp_path.glob(f"*.{suffix}")))}, streaming=True).splits["train"]
    columns = ImageColumns("image", None, None, None, None)
    make = ImageExampleMaker(columns, ImagePreprocessor(processor.image_processor))
    examples = IterableExamples(rows, make, shuffle=Shuffle(0, 1000))
    examples.share = Share(100)
    memory = []
    for _ in islice(DataLoader(examples, batch_size=100, num_workers=2, collate_fn=len), 1000):
        own = psutil.Process()
        memory.append([process.memory_info().rss for process in (own, *own.children())])
    for early, late in zip(zip(*memory[100:200], strict=True), zip(*memory[200:], strict=True), strict=True):
        assert max(late) < 1.02 * max(early) + 2**23
