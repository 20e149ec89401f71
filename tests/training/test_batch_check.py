"""Batches of one class are warned of once, with their cause."""

import logging

import pytest

from starft_hf import StarFTTrainer
from tests.support.tiny import make_dataset


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if "images of one class only" in r.getMessage()]


def by_class(size=32):
    rows = make_dataset(size)
    return rows.select(sorted(range(size), key=rows["label"].__getitem__))


CASES = {
    "in order": (by_class, {"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential'"),
    "a small buffer": (
        lambda: by_class().to_iterable_dataset(),
        {"shuffle_buffer_size": 2},
        "shuffle_buffer_size=2 does not mix them",
    ),
    "a stream in order": (
        lambda: by_class().to_iterable_dataset(),
        {"train_sampling_strategy": "sequential"},
        "train_sampling_strategy='sequential'",
    ),
    "shuffled": (lambda: by_class().to_iterable_dataset(), {}, None),
    "at random": (by_class, {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_batches_of_one_class(clip, processor, config, warned, case):
    make, settings, cause = CASES[case]
    StarFTTrainer(clip, config(**settings), make(), processing_class=processor).train()
    assert len(warned()) == (cause is not None)
    assert cause is None or cause in warned()[0]
