"""What the metrics say to columns and settings that make no sense."""

import pytest

from starft_hf.evaluation.metrics import ExpectedCalibrationError, GroupAccuracy, MacroF1, TopKAccuracy, metric_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups_expected": ["land"]}, r"groups \['water'\], which groups_expected does not name"),
        ({"groups_expected": ["land", "water", "air"]}, r"groups_expected names the groups \['air'\].* no rows"),
        ({"training_shares": {"land": 1.0}}, r"groups \['water'\], which training_shares does not name"),
        (
            {"training_shares": {"land": 0.5, "water": 0.4, "air": 0.1}},
            r"training_shares names the groups \['air'\].* no rows",
        ),
        ({"training_shares": {"land": 1.5, "water": -0.5}}, r"training_shares\['water'\] is -0.5"),
        ({"training_shares": {"land": float("nan"), "water": 1}}, r"training_shares\['land'\] is nan"),
        ({"training_shares": {"land": 0, "water": 0}}, "at least one group a share above 0"),
        ({"groups": ["land"] * 7}, "predictions 8, groups 7"),
        ({"groups": ["land"] * 7 + [None]}, "groups hold None"),
        ({"groups": ["land"] * 7 + [0.5]}, "groups hold 0.5"),
        ({"groups": ["land"] * 7 + [1]}, "groups hold strings and integers"),
        ({"groups": [["land"]] * 8}, "groups hold values that cannot be counted"),
        ({"groups": None}, r"\['groups'\] are missing"),
        ({"predictions": [0] * 7}, "predictions 7, references 8"),
        ({"references": [0] * 7 + [-1]}, "row 7 of references is -1, and class indices start at 0"),
        ({"predictions": [0.9] * 8}, "predictions have dtype float64"),
        ({"predictions": [[0, 1]] * 8}, r"predictions have shape \(8, 2\)"),
        ({"predictions": [], "references": [], "groups": []}, "no rows"),
    ],
)
def test_columns_that_do_not_fit_group_accuracy(options, message):
    columns = {"predictions": [0, 1] * 4, "references": [0, 1] * 4, "groups": ["land"] * 5 + ["water"] * 3}
    with pytest.raises(ValueError, match=message):
        GroupAccuracy().compute(**{**columns, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidences": [0.5, 1.5]}, "row 1 of confidences is 1.5"),
        ({"confidences": [-0.1, 0.5]}, "row 0 of confidences is -0.1"),
        ({"confidences": [0.5, float("nan")]}, "row 1 of confidences is nan"),
        ({"confidences": [[0.5, 0.5], [0.1, 0.9]]}, r"confidences have shape \(2, 2\)"),
        ({"confidences": [0.5]}, "confidences 1, predictions 2"),
        ({"references": [0, -100]}, "row 1 of references is -100"),
        ({"num_bins": 0}, "num_bins is 0"),
        ({"num_bins": 2.5}, "num_bins is 2.5"),
    ],
)
def test_columns_that_do_not_fit_the_calibration_error(options, message):
    columns = {"confidences": [0.5, 0.6], "predictions": [0, 1], "references": [0, 1]}
    with pytest.raises(ValueError, match=message):
        ExpectedCalibrationError().compute(**{**columns, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"references": [0, 3]}, "row 1 of references is 3, and class indices go from 0 to 2"),
        ({"references": [0, -1]}, "row 1 of references is -1"),
        ({"references": [0]}, "scores 2, references 1"),
        ({"k": 4}, "k is 4 and there are 3 classes"),
        ({"k": 0}, "k is 0"),
        ({"scores": [[0.1, 0.2, 0.3], [0.1, 0.2]]}, "scores cannot be an array"),
        ({"scores": [0.1, 0.2]}, r"scores have shape \(2,\)"),
        ({"scores": [[0.1, 0.2, 0.3], [float("nan"), 0.2, 0.3]]}, "row 1 of scores holds NaN"),
    ],
)
def test_columns_that_do_not_fit_top_k(options, message):
    columns = {"scores": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], "references": [0, 1], "k": 1}
    with pytest.raises(ValueError, match=message):
        TopKAccuracy().compute(**{**columns, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 2}, "row 2 of predictions is 2, and class indices go from 0 to 1"),
        ({"references": [0, 1, 3], "num_classes": 3}, "row 2 of references is 3, and class indices go from 0 to 2"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"references": ["owl", "truck", "owl"]}, "references have dtype"),
    ],
)
def test_columns_that_do_not_fit_macro_f1(options, message):
    columns = {"predictions": [0, 1, 2], "references": [0, 1, 1]}
    with pytest.raises(ValueError, match=message):
        MacroF1().compute(**{**columns, **options})


def test_batches_are_checked_when_they_come():
    metric = MacroF1()
    with pytest.raises(ValueError, match="predictions have dtype float64"):
        metric.add_batch(predictions=[0.9], references=[1])
    with pytest.raises(ValueError, match="predictions have dtype float64"):
        metric.add(prediction=0.9, reference=1)
    with pytest.raises(ValueError, match="predictions 2, references 1"):
        metric.add_batch(predictions=[0, 1], references=[1])
    with pytest.raises(ValueError, match=r"\['references'\] are missing"):
        metric.add_batch(predictions=[0, 1])
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    assert metric.compute() == {"macro_f1": 1.0}


@pytest.mark.parametrize(("first", "second"), [("a", 1), (1, "a")])
def test_groups_that_change_their_type_between_batches(first, second):
    metric = GroupAccuracy()
    metric.add_batch(predictions=[0], references=[0], groups=[first])
    with pytest.raises(ValueError, match="with the same types in every batch"):
        metric.add_batch(predictions=[0], references=[0], groups=[second])


def test_scores_that_change_their_classes_between_batches():
    metric = TopKAccuracy()
    metric.add_batch(scores=[[0.1, 0.9]], references=[0])
    with pytest.raises(ValueError, match=r"hold rows of shape \(3,\) after rows of shape \(2,\)"):
        metric.add_batch(scores=[[0.1, 0.9, 0.0]], references=[0])
    assert metric.compute(k=1) == {"top_k_accuracy": 0.0}


def test_columns_that_a_metric_does_not_have():
    with pytest.raises(ValueError, match=r"macro_f1 takes .*\['groups'\]"):
        MacroF1().add_batch(predictions=[0], references=[0], groups=["a"])
    with pytest.raises(ValueError, match=r"\['groups'\] are missing"):
        GroupAccuracy().add(prediction=0, reference=0)


def test_nothing_added_is_an_error():
    with pytest.raises(ValueError, match="add"):
        MacroF1().compute()


def test_an_unknown_metric_has_no_path():
    with pytest.raises(ValueError, match=r"unknown metric 'accuracy'.*'group_accuracy'"):
        metric_path("accuracy")
