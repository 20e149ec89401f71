import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from starft_hf import StarFTTrainer
from starft_hf.data.groups import Groups, resolve_groups


@pytest.fixture
def birds():
    features = Features(
        label=ClassLabel(names=["landbird", "waterbird"]),
        place=ClassLabel(names=["land", "water"]),
        year=Value("int64"),
    )
    return Dataset.from_dict({"label": [0, 1, 1], "place": [1, 1, 0], "year": [2001, 2002, 2002]}, features=features)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ("place", ["water", "water", "land"]),
        (["label", "place"], ["landbird x water", "waterbird x water", "waterbird x land"]),
        (["place", "year"], ["water x 2001", "water x 2002", "land x 2002"]),
    ],
)
def test_columns_name_groups(birds, columns, names):
    groups = resolve_groups(birds, columns)
    assert [groups.of(row) for row in birds] == names


class Untyped:
    """A dataset that is not one of `datasets`."""

    def __len__(self):
        return 2

    def __getitem__(self, row):
        return {"tags": np.array(["a", "b"])}


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (Dataset.from_dict({"tags": [["a", "b"], ["a"]]}), r"has \['a', 'b'\] in row 0"),
        (Dataset.from_dict({"tags": [None, ["a"]]}), r"holds \w+\(.*"),
        (Dataset.from_dict({"tags": [{"a": 1}, {"a": 2}]}), r"has \{'a': 1\} in row 0"),
        (Dataset.from_dict({"tags": [["a"]]}).to_iterable_dataset(), r"holds \w+\(.*"),
        (Untyped(), r"has \['a', 'b'\] in row 0"),
    ],
)
def test_rows_with_several_values_are_in_no_group(rows, found):
    with pytest.raises(ValueError, match=rf"column 'tags' {found}, and .*Join them: .*'tags': ' x '\.join"):
        resolve_groups(rows, "tags")
    # Where the type is not known in advance.
    with pytest.raises(ValueError, match=r"column 'tags' has a row with \['a', 'b'\], and .*group_column=\[\.\.\.\]"):
        Groups(("tags",), {"tags": ["a", "b"]}).of({"tags": ["a", "b"]})


def test_lists_are_refused_before_anything_is_loaded(config, dataset):
    rows = dataset.add_column("tags", [["a", "b"]] * len(dataset))
    for settings in ({}, {"train_sampling_strategy": "group_balanced"}):
        for evaluated in (None, rows):
            with pytest.raises(ValueError, match=r"column 'tags' has \['a', 'b'\] in row 0"):
                StarFTTrainer("nobody/nothing", config(group_column="tags", **settings), rows, evaluated)


def test_a_function_names_groups(birds):
    groups = resolve_groups(birds, None, lambda row: "old" if row["year"] < 2002 else "new")
    assert [groups.of(row) for row in birds] == ["old", "new", "new"]
    with pytest.raises(ValueError, match="choose one of them"):
        resolve_groups(birds, "place", lambda row: "")
    with pytest.raises(ValueError, match="must return a string"):
        resolve_groups(birds, None, lambda row: row["year"]).of(birds[0])


def test_the_trainer_evaluates_by_several_columns_and_by_a_function(clip, processor, config, dataset):
    crossed = config(group_column=["label", "group"])
    metrics = StarFTTrainer(clip, crossed, dataset, dataset, processing_class=processor).evaluate()
    assert "eval_accuracy_owl_x_left" in metrics
    assert sum(name.startswith("eval_accuracy_") for name in metrics) == 8
    by_function = StarFTTrainer(
        clip, config(), dataset, dataset, processing_class=processor, group_function=lambda row: row["note"][-1]
    )
    metrics = by_function.evaluate()
    assert {name[-1] for name in metrics if name.startswith("eval_accuracy_")} == set("0123456789")
    # Shares of the training set: the same rows, so adjusting changes nothing.
    assert metrics["eval_group_adjusted_accuracy"] == pytest.approx(metrics["eval_accuracy"])


def test_unknown_groups_are_refused_at_once(clip, processor, config, dataset):
    def refused(rows, match, **settings):
        with pytest.raises(ValueError, match=match):
            StarFTTrainer(clip, config(**settings), dataset, rows, processing_class=processor)

    refused(
        dataset.filter(lambda group: group == 0, input_columns="group"),
        "no row in group 'right'",
        group_column="group",
    )
    notes = dataset.remove_columns("note").add_column("note", [None, *["a"] * 23])
    refused(notes, "has a row without a value", group_column="note")
    missing = dataset.remove_columns("note").add_column("note", [float("nan"), *[1.0] * 23])
    refused(missing, "has a row without a value", group_column="note")
    refused(dataset.remove_columns("note").add_column("note", [""] * 24), "empty name", group_column="note")
    refused(dataset, "no column 'place'; its columns are", group_column="place")
    names = ["owl", "truck", "owl", "fern"]
    refused(dataset, "class_names contains duplicates: 'owl', for labels 0 and 2", class_names=names)


def test_training_rows_whose_group_is_unknown_leave_the_adjusted_accuracy_out(clip, processor, config, dataset):
    train = dataset.remove_columns("group").add_column("group", [None, *["left", "right"] * 11, "left"])
    trainer = StarFTTrainer(clip, config(group_column="group"), train, dataset, processing_class=processor)
    metrics = trainer.evaluate()
    assert "eval_worst_group_accuracy" in metrics
    assert "eval_group_adjusted_accuracy" not in metrics
