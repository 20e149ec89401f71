"""Rows that are held out for validation."""

from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from starft_hf.data.holdout import held_out
from starft_hf.data.loading import load_splits, read_data
from tests.support.tiny import write_captions, write_folder


def rows(**columns):
    return Dataset.from_dict(columns)


def test_every_stratum_has_its_share():
    labels = ["owl"] * 100 + ["fern"] * 40 + ["fox"] * 8
    groups = (["left", "right"] * 74)[:148]
    kept, chosen = held_out(rows(label=labels, group=groups), 0.2, ["label", "group"])
    assert sorted(kept + chosen) == list(range(148))
    assert Counter((labels[row], groups[row]) for row in chosen) == {
        (label, side): number for label, number in (("owl", 10), ("fern", 4), ("fox", 1)) for side in ("left", "right")
    }


def test_small_strata_give_one_row_each_at_most_and_their_share_in_all():
    labels = [number // 3 for number in range(300)] + [1000]
    _, chosen = held_out(rows(label=labels), 0.1, ["label"])
    assert len(chosen) == 30
    assert max(Counter(labels[row] for row in chosen).values()) == 1
    assert 300 not in chosen


def test_rows_of_one_image_stay_together(tmp_path):
    images = [number // 3 for number in range(60)]
    kept, chosen = held_out(rows(image=images), 0.25, [], images=images)
    assert sorted(kept + chosen) == list(range(60))
    assert len(chosen) == 15
    assert not {images[row] for row in kept} & {images[row] for row in chosen}
    write_captions(tmp_path / "photos")
    found = load_splits(tmp_path / "photos", validation_split=0.25)
    files = {name: {row["image"].tobytes() for row in part} for name, part in found.items()}
    assert {name: len(part) for name, part in files.items()} == {"train": 12, "validation": 4}
    assert not files["train"] & files["validation"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0, 0.99), st.integers(0, 3))
def test_a_class_of_several_rows_is_on_both_sides_and_the_choice_is_repeatable(labels, share, seed):
    data = rows(label=labels)
    kept, chosen = held_out(data, share, ["label"], seed)
    assert sorted(kept + chosen) == list(range(len(labels)))
    assert (kept, chosen) == held_out(data, share, ["label"], seed)
    for label, number in Counter(labels).items():
        assert label in {labels[row] for row in kept}
        if share and number >= 4:
            assert label in {labels[row] for row in chosen}
    assert share or not chosen


def test_another_seed_is_another_choice():
    data = rows(label=[0, 1] * 50)
    assert held_out(data, 0.2, ["label"], 0) != held_out(data, 0.2, ["label"], 1)


@pytest.mark.parametrize("share", [-0.1, 1, 2, float("nan")])
def test_a_share_that_is_none(share, tmp_path):
    with pytest.raises(ValueError, match=f"validation_split is {share}; it must be at least 0"):
        load_splits(tmp_path, validation_split=share)


def test_nothing_is_held_out_of_data_with_other_splits_or_if_not_asked_for(tmp_path):
    write_folder(tmp_path / "one")
    assert set(load_splits(tmp_path / "one", validation_split=0)) == {"train"}
    found = read_data(tmp_path / "one", group_columns=["place"])
    assert "of its 16 images, chosen at random and stratified by class and group" in found.notes[-1]
    write_folder(tmp_path / "one", split="holdout")
    assert {name: len(part) for name, part in load_splits(tmp_path / "one").items()} == {"train": 16, "test": 16}


def test_an_iterable_dataset_is_split_as_one_in_memory(tmp_path):
    write_folder(tmp_path / "one")
    there, streamed = load_splits(tmp_path / "one"), load_splits(tmp_path / "one", streaming=True)
    for name in ("train", "validation"):
        labels = there[name].features["label"]
        assert [row["label"] for row in streamed[name]] == there[name]["label"][:]
        assert streamed[name].features["label"] == labels
