"""Iterable training sets are shuffled, in an order that the seed and the pass alone decide."""

from collections import Counter
from itertools import islice

import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from datasets import Dataset

from starft_hf import StarFTTrainer
from starft_hf.data.loading import load_splits
from starft_hf.data.shuffling import Shuffle
from tests.support.runs import steps
from tests.support.tiny import make_dataset, write_folder


class Rows(torch.utils.data.IterableDataset):
    """Neither of `datasets` nor with anything but its rows."""

    def __iter__(self):
        return iter({"row": row} for row in range(40))


def numbers(dataset, number=0, seed=0, buffer_size=16):
    return [row["row"] for row in Shuffle(seed, buffer_size).rows(dataset, number, ["row"])]


def hugging_face(num_shards=4):
    return Dataset.from_dict({"row": range(40)}).to_iterable_dataset(num_shards=num_shards)


@pytest.mark.parametrize("make", [hugging_face, Rows])
def test_the_order_depends_on_the_seed_and_the_pass(make):
    order = numbers(make())
    assert order == numbers(make())
    assert sorted(order) == list(range(40))
    for other in (numbers(make(), number=1), numbers(make(), seed=1)):
        assert sorted(other) == list(range(40))
        assert other != order
    for number in range(2):
        assert numbers(make(), number, buffer_size=0) == list(range(40))


def test_the_order_of_shards_is_shuffled_beyond_the_buffer():
    assert max(numbers(hugging_face(20), buffer_size=4)[:10]) > 20


def test_a_dataset_that_was_shuffled_keeps_its_order_and_its_epoch():
    given = hugging_face().shuffle(seed=7, buffer_size=8)
    own = [row["row"] for row in given]
    assert numbers(given) == own
    later = numbers(given, number=2)
    assert later != own
    assert given.epoch == 0
    given.set_epoch(2)
    assert [row["row"] for row in given] == later


@pytest.fixture
def labels_of(clip, processor, config):
    """The labels of every batch of a run."""

    def run(dataset, **settings):
        trainer = StarFTTrainer(clip, config(**settings), dataset, processing_class=processor)
        seen = []
        compute = trainer.compute_loss
        trainer.compute_loss = lambda model, inputs, **rest: (
            seen.append(inputs["labels"].tolist()) or compute(model, inputs, **rest)
        )
        trainer.train()
        return seen, trainer

    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_is_not_read_class_by_class(tmp_path, labels_of, workers):
    write_folder(tmp_path, size=64)
    dataset = load_splits(tmp_path, streaming=True)["train"]
    # The buffer is smaller than a class.
    batches, trainer = labels_of(dataset, shuffle_buffer_size=8, dataloader_num_workers=workers, max_steps=8)
    assert all(len(set(batch)) > 1 for batch in batches)
    assert min(step["reg_loss"] for step in steps(trainer)[2:]) > 0


def test_passes_follow_each_other_without_a_short_batch(labels_of):
    batches, _ = labels_of(make_dataset(12).to_iterable_dataset(), max_steps=3)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert Counter(label for batch in batches for label in batch) == dict.fromkeys(range(4), 6)


def test_a_negative_buffer_is_refused(config):
    with pytest.raises(ValueError, match="shuffle_buffer_size is -1"):
        config(shuffle_buffer_size=-1)


def test_two_processes_share_the_batches_of_one(clip, processor, config, dataset):
    stream = dataset.to_iterable_dataset(num_shards=3)
    examples = StarFTTrainer(clip, config(), stream, processing_class=processor).train_dataset
    # More than a pass.
    one = [example["sample"] for example in islice(examples, 40)]
    shards = [IterableDatasetShard(examples, batch_size=4, num_processes=2, process_index=rank) for rank in range(2)]
    both = [[example["sample"] for example in islice(shard, 20)] for shard in shards]
    assert [sample for at in range(0, 20, 4) for own in both for sample in own[at : at + 4]] == one
