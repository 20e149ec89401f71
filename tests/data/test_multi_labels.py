"""What the values of a label column mean where a row may have several classes."""

import re

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from starft_hf.data.columns import ColumnSettings, check_labels, resolve_columns
from tests.support.multi_label import make_multi_label_dataset
from tests.support.tiny import CLASS_NAMES, make_dataset


def columns_of(dataset, **settings):
    found = resolve_columns(dataset, ColumnSettings(multi_label=True, **settings), what="the dataset")
    check_labels(dataset, found, what="the dataset", several=True)
    return found


def rows_of(labels, entry="int64"):
    features = Features(image=Value("string"), label=List(Value(entry)))
    return Dataset.from_dict({"image": ["a"] * len(labels), "label": labels}, features=features)


def targets(dataset, columns):
    return np.stack([columns.targets_of(row)["targets"] for row in dataset])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("form", ["names", "vectors", "booleans", "text"])
def test_all_forms_of_labels_mean_the_same(form, streamed):
    wanted, dataset = make_multi_label_dataset(12), make_multi_label_dataset(12, form=form)
    expected = targets(wanted, columns_of(wanted))
    given = dataset.to_iterable_dataset() if streamed else dataset
    found = columns_of(given, class_names=CLASS_NAMES)
    np.testing.assert_array_equal(targets(given, found), expected)
    assert expected[0].sum() == 0
    assert expected[1].sum() == len(CLASS_NAMES)
    assert found.group_of(dataset[0]) == ""


def test_names_without_class_names_are_sorted_and_one_class_needs_no_list():
    dataset = make_multi_label_dataset(12, form="names")
    assert columns_of(dataset).class_names == tuple(sorted(CLASS_NAMES))
    single = make_dataset(8)
    expected = np.eye(4)[single["label"]]
    np.testing.assert_array_equal(targets(single, columns_of(single)), expected)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([[0], [0, 1], []], "ab", [[1, 0], [1, 1], [0, 0]]),
        ([[0, 1], [0, 0]], "ab", [[0, 1], [0, 0]]),
        ([[0, 1, 1], [0, 0, 1]], "abc", [[0, 1, 1], [0, 0, 1]]),
        ([[0, 1, 1], [2]], "abc", [[1, 1, 0], [0, 0, 1]]),
    ],
)
def test_integers_are_vectors_if_every_row_has_as_many_as_there_are_classes(labels, names, expected):
    dataset = rows_of(labels)
    np.testing.assert_array_equal(targets(dataset, columns_of(dataset, class_names=list(names))), expected)


def test_what_may_be_either_is_refused_with_the_casts_that_say_which():
    dataset = rows_of([[0, 1], [1, 0]])
    with pytest.raises(
        ValueError, match=r"ambiguous: with 2 classes, \[0, 1\] may list classes or be a vector"
    ) as raised:
        columns_of(dataset, class_names=["owl", "fern"])
    meanings = {"lists": [[1, 1], [1, 1]], "vectors": [[0, 1], [1, 0]]}
    casts = re.findall(r"dataset\.cast_column\(.*?\)\)+ for (\w+)", str(raised.value))
    assert sorted(casts) == sorted(meanings)
    lists = dataset.cast_column("label", List(ClassLabel(names=["owl", "fern"])))
    vectors = dataset.cast_column("label", List(Value("bool")))
    for cast, meaning in ((lists, meanings["lists"]), (vectors, meanings["vectors"])):
        np.testing.assert_array_equal(targets(cast, columns_of(cast, class_names=["owl", "fern"])), meaning)
    stream = dataset.to_iterable_dataset()
    with pytest.raises(ValueError, match="ambiguous"):
        targets(stream, columns_of(stream, class_names=["owl", "fern"]))


def test_an_evaluation_set_that_may_be_either_is_read_as_the_training_set():
    training = columns_of(rows_of([[0, 1], [0, 0]]), class_names=["owl", "fern"])
    dataset = rows_of([[0, 1], [1, 0]])
    found = columns_of(dataset, class_names=["owl", "fern"], training=training)
    np.testing.assert_array_equal(targets(dataset, found), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([[0, 1, 0], [1, 1, 0]], "abcd", r"vectors of 3 numbers, such as \[0, 1, 0\], but there are 4 classes"),
        ([[0, 5]], "abc", r"the label 5, but there are 3 class names"),
        ([[-1, 0, 1]], "abc", r"the label -1.*often marks rows without a label"),
        ([None, [0]], "abc", r"a row without a value, so its classes are unknown; fill it, with \[\]"),
        ([[], []], "abc", "no row of the dataset has a class"),
        ([[0, 2]], None, "no class names"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(labels, names, words):
    with pytest.raises(ValueError, match=words):
        columns_of(rows_of(labels), class_names=names and list(names))


def test_vectors_with_other_numbers_are_refused():
    dataset = rows_of([[0.0, 1.0, 1.0], [1.0, 0.3, 1.0]], "float32")
    with pytest.raises(ValueError, match=r"0\.3"):
        columns_of(dataset, class_names=list("abc"))


def test_unknown_names_and_groups_by_the_label_are_refused():
    dataset = make_multi_label_dataset(8, form="names")
    with pytest.raises(ValueError, match="unknown label 'owl'"):
        columns_of(dataset, class_names=["truck", "violin", "fern"])
    with pytest.raises(ValueError, match="group_column names 'label', of which a row has several classes"):
        columns_of(dataset, group_column=["label", "group"])


def test_classes_without_images_are_warned_of(caplog):
    columns_of(rows_of([[0], [0, 1]]), class_names=["owl", "fern", "truck"])
    assert "1 of 3 classes have no image in the dataset, such as 'truck'" in caplog.text
