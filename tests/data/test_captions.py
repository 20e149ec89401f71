"""Captions of a column: one or several per image, and missing ones."""

import pytest
from datasets import Dataset

from starft_hf import StarFTTrainer
from tests.support.tiny import CLASS_NAMES, make_dataset


def with_captions(values):
    return make_dataset(len(values)).add_column("caption", values)


@pytest.fixture
def trainer_of(clip, processor, config):
    def make(dataset, **settings):
        args = config(caption_column="caption", regularizer="kl", **settings)
        return StarFTTrainer(clip, args, dataset, processing_class=processor)

    return make


def test_one_of_several_captions_is_drawn_in_every_epoch(trainer_of):
    choices = [[f"a photo of {number} {place}" for place in "abc"] for number in range(24)]
    trainer = trainer_of(with_captions(choices))
    drawn = []
    for epoch in range(6):
        trainer.epoch.value = epoch
        drawn.append([example["caption"] for example in trainer.train_dataset.__getitems__(range(24))])
        for caption, own in zip(drawn[-1], choices, strict=True):
            assert caption in own
            assert trainer.train_dataset[int(caption.split()[3])]["spurious_caption"].startswith(caption)
    # Each is drawn about as often.
    ends = [caption[-1] for epoch in drawn for caption in epoch]
    assert min(ends.count(end) for end in "abc") > len(ends) / 5
    assert len({tuple(epoch) for epoch in drawn}) == 6
    again = trainer_of(with_captions(choices))
    again.epoch.value = 3
    assert [again.train_dataset[row]["caption"] for row in range(24)] == drawn[3]


def test_lists_of_one_caption_are_that_caption(trainer_of):
    texts = [f"a photo of {number}" for number in range(24)]
    for values in (texts, [[text] for text in texts]):
        assert [trainer_of(with_captions(values)).train_dataset[row]["caption"] for row in range(24)] == texts


@pytest.mark.parametrize("kind", ["Dataset", "iterable", "list", "with a worker"])
@pytest.mark.parametrize("several", [True, False], ids=["lists", "strings"])
def test_captions_of_every_dataset_train(trainer_of, several, kind):
    dataset = with_captions([["a photo", "the photo"] if several else "a photo"] * 24)
    settings = {"dataloader_num_workers": 1} if kind == "with a worker" else {}
    if kind == "iterable":
        dataset = dataset.to_iterable_dataset()
    elif kind == "list":
        dataset = list(dataset.remove_columns("label"))
    assert trainer_of(dataset, max_steps=1, **settings).train().training_loss > 0


@pytest.mark.parametrize("missing", [None, "", " ", [], ["a photo", None]], ids=repr)
def test_a_missing_caption_is_named_with_its_row_and_column(trainer_of, missing):
    fine = ["a photo"] if isinstance(missing, list) else "a photo"
    values = [*[fine] * 5, missing, *[fine] * 18]
    dataset = with_captions(values)
    with pytest.raises(ValueError, match=r"row 5: column 'caption' has no caption"):
        trainer_of(dataset)
    # The advice, as it is written.
    kept = dataset.filter(lambda row: row["caption"])
    assert len(kept) == 23 + (missing in (" ", ["a photo", None]))
    for other in (list(dataset), dataset.to_iterable_dataset()):
        trainer = trainer_of(other, class_names=CLASS_NAMES, train_sampling_strategy="sequential")
        with pytest.raises(ValueError, match=r"row 5[^0-9].*column 'caption' has no caption"):
            trainer.train()


def test_what_is_not_a_caption_is_refused(trainer_of):
    with pytest.raises(ValueError, match=r"row 0: column 'caption' has \{'raw': 'a photo'\}, which is not a caption"):
        trainer_of(with_captions([{"raw": "a photo"}] * 24))
    with pytest.raises(ValueError, match="has 7, which is not a caption"):
        trainer_of(Dataset.from_list([{**row, "caption": 7} for row in make_dataset(8)]))
