"""What labels and groups of an evaluation set mean, whatever their type and that of the training set's."""

import logging

import pytest
from datasets import ClassLabel, Value

from starft_hf import StarFTTrainer, evaluate_zero_shot
from starft_hf.data.columns import ColumnSettings, resolve_columns, resolve_evaluation_columns
from tests.support.tiny import make_dataset


# Neither in the order of the alphabet nor as they are in other orders.
NAMES = ["owl", "fern", "truck"]
ROWS = [0, 1, 2, 2, 1, 0]


def column(values, feature=None):
    """Rows with these labels; neither their images nor those of any other test here are read."""
    rows = make_dataset(len(values)).remove_columns("label").add_column("label", values)
    return rows if feature is None else rows.cast_column("label", feature)


def by_kind(kind, names=NAMES):
    if kind == "strings":
        return column([names[row] for row in ROWS])
    if kind == "ClassLabel":
        return column(ROWS, ClassLabel(names=names))
    if kind == "ClassLabel, other order":
        own = sorted(names)
        return column([own.index(names[row]) for row in ROWS], ClassLabel(names=own))
    return column(ROWS, Value(kind))


def test_missing_labels_are_refused_alike_in_advance_and_when_a_row_is_read():
    rows = column([0, None, 2], Value("int64"))
    settings = ColumnSettings(class_names=NAMES)
    with pytest.raises(ValueError, match="column 'label' has a row without a value") as known:
        resolve_evaluation_columns(rows, settings, what="eval_dataset")
    streamed = rows.to_iterable_dataset()
    columns = resolve_evaluation_columns(streamed, settings, what="eval_dataset")
    with pytest.raises(ValueError, match="column 'label' has a row without a value") as read:
        [columns.label_of(row) for row in streamed.select_columns(["label"])]
    assert str(read.value) == str(known.value)


def names_read(train, evaluated, class_names=None):
    """The names of the classes that the rows of an evaluation set are taken for."""
    training = resolve_columns(train, ColumnSettings(class_names=class_names), what="train_dataset")
    settings = ColumnSettings(class_names=class_names, training=training)
    columns = resolve_evaluation_columns(evaluated, settings, what="eval_dataset")
    return [columns.class_names[columns.label_of(row)] for row in evaluated.select_columns(["label"])]


KINDS = ["ClassLabel", "ClassLabel, other order", "strings", "int64", "float32"]


@pytest.mark.parametrize("evaluated", KINDS)
@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("given", [True, False])
def test_labels_are_matched_by_name_or_refused(train, evaluated, given):
    if not given and train in ("int64", "float32"):
        return
    numbers = evaluated in ("int64", "float32")
    # What numbers are positions of: the class names, or else the classes of the training set.
    order = NAMES if given or train == "ClassLabel" else sorted(NAMES)
    call = (by_kind(train), by_kind(evaluated), NAMES if given else None)
    if numbers and not given and train == "strings":
        with pytest.raises(ValueError, match=r"numbers such as 0.*strings, which numbers are not positions of"):
            names_read(*call)
    else:
        assert names_read(*call) == [(order if numbers else NAMES)[row] for row in ROWS]


@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_numbers_that_are_names(kind):
    train = column(["3", "7", "3", "11"])
    assert names_read(train, column([11, 3, 7], Value(kind))) == ["11", "3", "7"]
    folders = column([0, 1, 2], ClassLabel(names=["1", "2", "3"]))
    assert names_read(folders, column([1, 2, 3], Value(kind))) == ["1", "2", "3"]
    assert names_read(folders, column([0, 1], Value(kind))) == ["1", "2"]
    with pytest.raises(ValueError, match="may be names or positions"):
        names_read(folders, column([1, 2], Value(kind)))
    digits = column([0, 1, 2], ClassLabel(names=["0", "1", "2"]))
    assert names_read(digits, column([2, 1], Value(kind))) == ["2", "1"]
    iterable = resolve_columns(train, ColumnSettings(), what="train_dataset")
    settings = ColumnSettings(training=iterable)
    columns = resolve_columns(column([11, 3]).to_iterable_dataset(), settings, what="eval_dataset")
    assert columns.class_names[columns.label_index(11)] == "11"
    with pytest.raises(ValueError, match="unknown label '0'"):
        columns.label_index(0)


def test_booleans():
    two = column([0, 1], ClassLabel(names=["owl", "fern"]))
    assert names_read(two, column([True, False])) == ["fern", "owl"]
    assert names_read(column(["True", "False"]), column([True, False])) == ["True", "False"]
    with pytest.raises(ValueError, match="holds booleans, but there are 3 classes"):
        names_read(by_kind("ClassLabel"), column([True, False]))


def test_renamed_classes_are_those_of_the_training_set():
    """`class_names` in place of those of a ClassLabel, here WordNet ids of no ImageNet class."""
    ids = ["n00000001", "n00000002", "n00000003"]
    train, evaluated = by_kind("ClassLabel", ids), by_kind("ClassLabel, other order", ids[::-1])
    assert names_read(train, train, NAMES) == [NAMES[row] for row in ROWS]
    assert names_read(train, evaluated, NAMES) == [NAMES[::-1][row] for row in ROWS]
    for other in (["cat", "dog"], ["owl", "dog"]):
        with pytest.raises(ValueError, match=r"has the classes \['(cat|owl)', 'dog'\], and class_names has others"):
            names_read(train, column([0, 1], ClassLabel(names=other)), NAMES)


LABELS = {
    "one-hot": ([[0, 1, 0], [1, 0, 0]], r"is one-hot: .*\[0, 1, 0\].*row\['label'\].index\(1\)"),
    "multi-label": ([[0, 1], [2]], r"is multi-label: .*\[0, 1\].*row\['label'\]\[0\]"),
    "CelebA's": ([-1, 1, 1], r"holds -1 and 1, as the attributes of CelebA do; .*\(row\['label'\] \+ 1\) // 2"),
    "unlabeled": ([-1, 0, 1, 2], r"-1 often marks rows without a label; .*row\['label'\] >= 0"),
}


@pytest.mark.parametrize("case", LABELS)
def test_what_is_not_a_label_is_said_with_what_repairs_it(clip, processor, config, case):
    values, match = LABELS[case]
    rows = column(values)
    for call in (
        lambda: StarFTTrainer(clip, config(class_names=NAMES), rows, processing_class=processor),
        lambda: evaluate_zero_shot(clip, processor, rows, class_names=NAMES, progress=False),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    # The advice, as it is written.
    repairs = {
        "one-hot": lambda: rows.map(lambda row: {"label": row["label"].index(1)}),
        "multi-label": lambda: rows.map(lambda row: {"label": row["label"][0]}),
        "CelebA's": lambda: rows.map(lambda row: {"label": (row["label"] + 1) // 2}),
        "unlabeled": lambda: rows.filter(lambda row: row["label"] >= 0),
    }
    resolve_evaluation_columns(repairs[case](), ColumnSettings(class_names=NAMES), what="dataset")


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if "group-adjusted" in r.getMessage()]


def grouped(kind):
    rows = make_dataset(group_names=["land", "water"])
    groups = rows["group"][:]
    if kind == "ClassLabel":
        return rows
    values = {"strings": [["land", "water"][group] for group in groups], "bool": list(map(bool, groups))}
    return rows.remove_columns("group").add_column(
        "group", values.get(kind, [*map(eval(kind), groups)] if kind in ("int", "float", "str") else None)
    )


@pytest.mark.parametrize(
    ("train", "evaluated"),
    [
        ("ClassLabel", "int"),
        ("int", "ClassLabel"),
        ("ClassLabel", "bool"),
        ("strings", "ClassLabel"),
        ("float", "str"),
    ],
)
def test_groups_are_matched_whatever_their_type(clip, processor, config, warned, train, evaluated):
    args = config(group_column=["label", "group"])
    of_run = (grouped(train), grouped(evaluated))
    metrics = StarFTTrainer(clip, args, *of_run, processing_class=processor).evaluate()
    same = StarFTTrainer(clip, args, grouped("ClassLabel"), grouped("ClassLabel"), processing_class=processor)
    assert metrics["eval_group_adjusted_accuracy"] == same.evaluate()["eval_group_adjusted_accuracy"]
    assert not warned()


def test_groups_of_other_classes_need_not_match(clip, processor, config, warned):
    others = grouped("strings").cast_column("label", ClassLabel(names=["kettle", "sky", "blue", "striped"]))
    args = config(group_column=["label", "group"])
    trainer = StarFTTrainer(clip, args, grouped("strings"), others, processing_class=processor)
    assert "eval_group_adjusted_accuracy" not in trainer.evaluate()
    assert not warned()


def test_a_training_set_without_groups_has_none_to_match(clip, processor, config, warned):
    args = config(group_column="group")
    train = grouped("strings").remove_columns("group")
    trainer = StarFTTrainer(clip, args, train, grouped("strings"), processing_class=processor)
    assert "eval_group_adjusted_accuracy" not in trainer.evaluate()
    assert not warned()


def test_groups_that_do_not_match_are_warned_of(clip, processor, config, warned):
    args = config(group_column="group")
    trainer = StarFTTrainer(clip, args, grouped("strings"), grouped("int"), processing_class=processor)
    assert "eval_group_adjusted_accuracy" not in trainer.evaluate()
    (message,) = warned()
    assert "2 groups ('land', 'water') of the training set, 100.0% of its images" in message
    assert "2 groups ('0', '1')" in message


def test_training_classes_without_evaluation_images_are_warned_of(clip, processor, config, warned):
    train = grouped("strings").remove_columns("group")
    part = train.filter(lambda label: label != 1, input_columns="label")
    metrics = StarFTTrainer(clip, config(), train, part, processing_class=processor).evaluate()
    assert metrics["eval_group_adjusted_accuracy"] == pytest.approx(metrics["eval_accuracy"], abs=0.1)
    (message,) = warned()
    name, share = train.features["label"].names[1], train["label"][:].count(1) / len(train)
    assert f"1 group ({name!r}) of the training set, {100 * share:.1f}% of its images" in message
    assert message.count("group (") == 1


@pytest.mark.parametrize("mapped", [False, True])
def test_other_classes_of_the_same_names_have_no_adjusted_accuracy(clip, processor, config, warned, mapped):
    train = grouped("strings").remove_columns("group")
    names = train.features["label"].names
    own = [names[0], "kettle"] if mapped else [names[0], "kettle", "sky", "striped"]
    labels = [label % len(own) for label in train["label"]]
    others = train.remove_columns("label").add_column("label", labels).cast_column("label", ClassLabel(names=own))
    mapping = [(0,), (1, 2, 3)] if mapped else None
    trainer = StarFTTrainer(clip, config(), train, others, processing_class=processor, class_mapping=mapping)
    metrics = trainer.evaluate()
    assert names[0] in trainer.evaluation_results["eval"].group_accuracies
    assert "eval_group_adjusted_accuracy" not in metrics
    assert not warned()


def test_a_class_label_column_is_matched_with_class_names_in_any_order():
    settings = ColumnSettings(class_names=["fern", "mole", "newt", "owl"])
    two = column([0, 1, 0], ClassLabel(names=["owl", "fern"]))
    columns = resolve_evaluation_columns(two, settings, what="dataset")
    assert columns.class_names == ("fern", "mole", "newt", "owl")
    assert [columns.label_of(row) for row in two] == [3, 0, 3]
    with pytest.raises(ValueError, match=r"holds the label 2, but there are 2 class names \(labels 0 to 1\)"):
        columns.label_index(2)


def test_that_images_are_classified_among_fewer_classes_than_in_training_is_said(caplog):
    training = resolve_columns(by_kind("ClassLabel"), ColumnSettings(), what="train_dataset")
    settings = ColumnSettings(training=training)
    resolve_evaluation_columns(column([0, 1], ClassLabel(names=NAMES[1:])), settings, what="eval_dataset 'few'")
    assert "eval_dataset 'few' has 2 of the 3 classes of training" in caplog.text
    caplog.clear()
    resolve_evaluation_columns(by_kind("ClassLabel, other order"), settings, what="eval_dataset")
    assert not caplog.text
