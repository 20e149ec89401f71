"""Batches of one class are warned of once, with their cause, and batches that lack something are refused."""

import logging

import pytest
from transformers import DataCollatorWithPadding, default_data_collator

from starft_hf import StarFTTrainer
from tests.support.multi_label import make_multi_label_dataset
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


FULL = {"reference_cache": "full", "crop_scale": None}


@pytest.mark.parametrize(
    ("missing", "settings"),
    [
        ("pixel_values", {}),
        ("caption_rows", {}),
        ("labels", {}),
        ("spurious_rows", {"reference_cache": "none"}),
        ("spurious_ids", {}),
        ("sample_index", FULL),
        ("sample_index", {"reweight": "attribution"}),
        ("labels", {"base_loss": "cross_entropy", "regularizer": "none"}),
        ("captions", {"regularizer": "conditional"}),
        ("targets", {"base_loss": "multi_label", "regularizer": "kl"}),
        ("spurious_captions", {"base_loss": "multi_label", "regularizer": "kl"}),
    ],
)
def test_what_an_own_collator_leaves_out_is_named(clip, processor, config, missing, settings):
    make = make_multi_label_dataset if settings.get("base_loss") == "multi_label" else make_dataset
    trainer = StarFTTrainer(clip, config(max_steps=1, **settings), make(16), processing_class=processor)
    collate = trainer.data_collator
    trainer.data_collator = lambda examples: {key: it for key, it in collate(examples).items() if key != missing}
    with pytest.raises(ValueError, match=f"the batch of the data_collator has no '{missing}'"):
        trainer.train()


@pytest.mark.parametrize("collate", [default_data_collator, DataCollatorWithPadding(None)])
def test_collators_of_texts_are_refused(clip, processor, config, dataset, collate):
    with pytest.raises(ValueError, match=r"of transformers, which cannot collate these examples; leave it out"):
        StarFTTrainer(clip, config(), dataset, processing_class=processor, data_collator=collate)


@pytest.mark.parametrize(
    ("unused", "settings"),
    [
        ("labels", {"regularizer": "kl"}),
        ("sample_index", {}),
        ("spurious_ids", {"reference_cache": "none"}),
        ("caption_rows", {"base_loss": "cross_entropy"}),
    ],
)
def test_what_no_step_needs_may_be_left_out(clip, processor, config, unused, settings):
    trainer = StarFTTrainer(clip, config(max_steps=1, **settings), make_dataset(16), processing_class=processor)
    collate = trainer.data_collator
    trainer.data_collator = lambda examples: {key: it for key, it in collate(examples).items() if key != unused}
    trainer.train()
