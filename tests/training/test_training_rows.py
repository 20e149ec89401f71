"""`shots`, `max_train_samples` and balanced sampling: what a run is trained on, and how often."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from starft_hf import StarFTConfig, StarFTTrainer, compare, tune
from starft_hf.hub.record import RunRecord
from starft_hf.training.tuning import selection
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


SIZES = {"owl": 12, "truck": 6, "violin": 3, "fern": 1}


@pytest.fixture(autouse=True)
def _messages():
    transformers_logging.warning_once.cache_clear()
    transformers_logging.info_once.cache_clear()


@pytest.fixture(scope="module")
def uneven():
    """Classes of 12, 6, 3 and 1 images, sorted by class, with the index of every row in its note."""
    rows = make_dataset(48)
    kept = [row for label, size in enumerate(SIZES.values()) for row in range(label, 4 * size, 4)]
    return rows.select(kept)


@pytest.fixture
def trainer_of(clip, processor, config):
    def make(dataset, cls=StarFTTrainer, **settings):
        return cls(copy.deepcopy(clip), config(**settings), dataset, processing_class=processor)

    return make


def notes(trainer):
    return trainer.setup.plan.train_dataset["note"]


def counts(trainer):
    return Counter(CLASS_NAMES[label] for label in trainer.setup.plan.train_dataset["label"])


def test_shots_draw_images_of_every_class_and_take_all_of_classes_with_fewer(trainer_of, uneven, caplog):
    three, five = trainer_of(uneven, shots=3), trainer_of(uneven, shots=5)
    assert counts(three) == {"owl": 3, "truck": 3, "violin": 3, "fern": 1}
    assert counts(five) == {"owl": 5, "truck": 5, "violin": 3, "fern": 1}
    assert set(notes(three)) < set(notes(five))
    assert notes(three) == [note for note in uneven["note"] if note in notes(three)]
    assert "shots=3: training on 10 of 22 images, by the seed 42." in caplog.text
    assert "Classes with fewer than shots=5 images are used in full: 'violin' has 3, 'fern' has 1." in caplog.text
    assert notes(trainer_of(uneven, shots=3)) == notes(three)
    assert notes(trainer_of(uneven, shots=3, seed=1)) != notes(three)
    assert notes(trainer_of(uneven, shots=3, seed=1, data_seed=42)) == notes(three)


def test_max_train_samples_are_not_the_first_rows(trainer_of, uneven, caplog):
    trainer = trainer_of(uneven, max_train_samples=8)
    assert len(trainer.train_dataset) == 8
    assert len(counts(trainer)) > 1
    assert "max_train_samples=8: training on 8 of 22 images" in caplog.text
    assert "leaves 1 of 4 classes without images: 'violin'. shots draws equally many of each." in caplog.text
    # The classes stay, whatever is left of them.
    assert trainer.class_names == tuple(CLASS_NAMES)
    assert len(trainer_of(uneven, max_train_samples=1000).train_dataset) == 22


def test_everything_made_of_the_training_set_is_made_of_what_is_drawn(trainer_of, uneven, tmp_path):
    settings = {"shots": 4, "crop_scale": None, "reference_cache": "full", "reweight": "attribution"}
    trainer = trainer_of(uneven, **settings)
    trainer.train()
    # Plain captions are among the spurious ones, with so few classes.
    assert trainer.reference.info.rows == 12 + trainer.bank.num_spurious_captions
    assert trainer.sample_weights.diagnostics.images == 12
    trainer.save_model()
    record = RunRecord.load(trainer.args.output_dir)
    assert (record.data["rows"], record.data["drawn_from"], record.config["shots"]) == (12, 22, 4)
    again = StarFTConfig.from_pretrained(trainer.args.output_dir, output_dir=str(tmp_path), use_cpu=True)
    assert again.shots == 4
    trainer.create_model_card()
    assert "| images trained on | 12 of 22 |" in (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "drawn_from" not in trainer_of(uneven, shots=100).record.data


def test_pseudo_groups_of_a_tuning_are_those_of_what_is_drawn(config, uneven, monkeypatch):
    class Found(Exception):  # noqa: N818
        pass

    def discover(model, processor, dataset, *args, **settings):
        raise Found(len(dataset))

    monkeypatch.setattr(selection, "discover_spuriosity", discover)
    args = config(shots=3, output_dir=None)
    with pytest.raises(Found, match="10"):
        tune(str(TINY_CLIP), args, uneven, make_dataset(8, seed=3), select_by="pseudo_groups", spuriosity=["{} here."])


def test_a_comparison_says_what_was_drawn(clip, processor, config, uneven):
    args = config(shots=3, class_names=CLASS_NAMES)
    report = compare(clip, args, uneven, make_dataset(8), methods=["zero-shot"], processing_class=processor)
    assert report.about["data"] == "10 images of 4 classes"


class Rows(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.rows = list(dataset)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.mark.parametrize("kind", [list, Rows])
def test_any_dataset_with_an_order_will_do(trainer_of, uneven, kind):
    expected, settings = trainer_of(uneven, shots=3), {"class_names": CLASS_NAMES}
    trainer = trainer_of(kind(uneven), shots=3, **settings)
    assert [trainer.train_dataset.dataset[row]["note"] for row in range(10)] == notes(expected)
    assert len(trainer_of(kind(uneven), max_train_samples=9, **settings).train_dataset) == 9
    balanced = trainer_of(kind(uneven), train_sampling_strategy="class_balanced", **settings)
    assert sorted(map(len, balanced.setup.plan.strata)) == [1, 3, 6, 12]
    by_place = trainer_of(
        kind(uneven), train_sampling_strategy="group_balanced", group_column=["label", "group"], **settings
    )
    assert sum(map(len, by_place.setup.plan.strata)) == 22


class Recorder(StarFTTrainer):
    """Keeps what every image of every batch looks like, by the class and the row of the image."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen = getattr(self, "seen", [])
        for row, sample in enumerate(inputs["sample_index"].tolist()):
            label = CLASS_NAMES[inputs["labels"][row]]
            self.seen.append((int(self.state.epoch), label, sample, inputs["pixel_values"][row].clone()))
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("workers", [0, 1])
def test_balanced_epochs_have_as_many_images_of_every_class_each_drawn_anew(trainer_of, uneven, workers):
    epochs = {"max_steps": -1, "num_train_epochs": 2, "crop_scale": (0.3, 0.9), "dataloader_num_workers": workers}
    trainer = trainer_of(uneven, Recorder, train_sampling_strategy="class_balanced", **epochs)
    trainer.train()
    for epoch in (0, 1):
        found = Counter(label for number, label, *_ in trainer.seen if number == epoch)
        assert sorted(found.values()) == [5, 5, 6, 6]
    assert len({sample for _, label, sample, _ in trainer.seen if label == "owl"}) == 11
    ferns = [pixels for _, label, sample, pixels in trainer.seen if label == "fern"]
    assert len({sample for _, label, sample, _ in trainer.seen if label == "fern"}) == 1
    # The same image, and another crop every time.
    assert len({pixels.numpy().tobytes() for pixels in ferns}) == len(ferns) == 11
    # An iteration over the examples ends.
    assert len([*trainer.train_dataset]) == 22


def test_groups_are_balanced_too_and_classes_without_images_are_named(trainer_of, uneven, caplog):
    some = uneven.filter(lambda row: row["label"] < 3)
    settings = {"train_sampling_strategy": "class_balanced"}
    assert [len(rows) for rows in trainer_of(some, **settings).setup.plan.strata] == [12, 6, 3]
    assert "balances only classes with images, not 'fern'." in caplog.text
    settings |= {"train_sampling_strategy": "group_balanced", "group_column": "group", "reweight": "attribution"}
    left = some["group"].count(0)
    assert [len(rows) for rows in trainer_of(some, **settings).setup.plan.strata] == [left, 21 - left]
    assert "together they overcorrect" in caplog.text


REFUSED = [
    ({"shots": 0}, "dataset", r"shots is 0; it must be a positive integer, or None for all images"),
    ({"max_train_samples": 1.5}, "dataset", r"max_train_samples is 1\.5; it must be a positive integer"),
    ({"shots": 2, "max_train_samples": 8}, "dataset", "both choose what is trained on; set one of them"),
    ({"train_sampling_strategy": "class-balanced"}, "dataset", "class-balanced.*Did you mean 'class_balanced'"),
    ({"shots": 2}, "iterable", r"shots=2 draws rows.*iterable dataset.*without streaming.*take\(\.\.\.\)"),
    ({"max_train_samples": 8}, "iterable", "max_train_samples=8 draws rows.*max_steps"),
    ({"train_sampling_strategy": "class_balanced"}, "iterable", "iterable dataset.*interleave_datasets"),
    ({"shots": 2, "caption_column": "note"}, "captions", "shots=2 draws images of every class.*max_train_samples"),
    (
        {"train_sampling_strategy": "class_balanced", "caption_column": "note"},
        "captions",
        "needs labels.*use 'random'",
    ),
    ({"max_train_samples": 2}, "sorted", "leaves images of one class only.*or shots"),
    ({"train_sampling_strategy": "group_balanced"}, "dataset", r"none are named; set group_column, such as \['label"),
    (
        {"train_sampling_strategy": "group_balanced", "group_column": ["label", "place"]},
        "dataset",
        r"no column 'place'; its columns are .*add_column\('place'.*or use 'class_balanced'",
    ),
]


@pytest.mark.parametrize(("settings", "kind", "match"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_loaded(processor, config, uneven, settings, kind, match):
    dataset = {
        "dataset": lambda: uneven,
        "iterable": uneven.to_iterable_dataset,
        "captions": lambda: uneven.remove_columns("label"),
        "sorted": lambda: uneven.select([*range(12), 21]),
    }[kind]()
    evaluation = make_dataset(8).rename_column("group", "place") if "place" in str(settings) else None
    with pytest.raises(ValueError, match=match):
        StarFTTrainer("nobody/nothing", config(**settings), dataset, evaluation, processing_class=processor)
