import doctest
import importlib
import multiprocessing
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

from starft_hf.evaluation import ClassificationCounts, metrics
from starft_hf.evaluation import metric_functions as functions
from starft_hf.evaluation.metrics import (
    ExpectedCalibrationError,
    GroupAccuracy,
    MacroF1,
    TopKAccuracy,
    metric_path,
)


CLASSES = {
    "group_accuracy": GroupAccuracy,
    "expected_calibration_error": ExpectedCalibrationError,
    "top_k_accuracy": TopKAccuracy,
    "macro_f1": MacroF1,
}

# Two classes on two backgrounds; right are rows 0, 1, 2, 4, 5 and 7.
BIRDS = {
    "predictions": [0, 0, 1, 0, 1, 0, 0, 1],
    "references": [0, 0, 1, 1, 1, 0, 1, 1],
    "groups": ["land", "land", "land", "land", "land", "water", "water", "water"],
}


@st.composite
def tables(draw):
    """Columns for all four metrics: rows of 2 to 6 classes in up to 3 groups."""
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = rng.normal(0, 2, (rows, classes))
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return {
        "scores": scores,
        "confidences": scores.max(-1),
        "predictions": scores.argmax(-1),
        "references": rng.integers(classes, size=rows),
        "groups": np.array(["left", "right", "upside down"])[rng.integers(3, size=rows)],
    }


def columns_of(metric, table):
    return {name: table[name] for name in metric._feature_names()}


def options_of(metric):
    return {"k": 2} if isinstance(metric, TopKAccuracy) else {}


def test_group_accuracy_by_hand():
    results = GroupAccuracy().compute(**BIRDS, training_shares={"land": 0.9, "water": 0.1})
    assert results == {
        "accuracy": 0.75,
        "worst_group_accuracy": pytest.approx(2 / 3),
        "worst_group": "water",
        "group_accuracies": {"land": 0.8, "water": pytest.approx(2 / 3)},
        "group_sizes": {"land": 5, "water": 3},
        "group_adjusted_accuracy": pytest.approx(0.9 * 0.8 + 0.1 * 2 / 3),
    }


def test_groups_may_be_integers_and_shares_may_be_counts():
    columns = {**BIRDS, "groups": [7, 7, 7, 7, 7, 3, 3, 3]}
    results = GroupAccuracy().compute(**columns, training_shares={7: 450, 3: 50, 5: 0})
    assert results["group_accuracies"] == {3: pytest.approx(2 / 3), 7: 0.8}
    assert results["worst_group"] == 3
    assert results["group_adjusted_accuracy"] == pytest.approx(0.9 * 0.8 + 0.1 * 2 / 3)


def test_without_shares_there_is_no_adjusted_accuracy():
    assert "group_adjusted_accuracy" not in GroupAccuracy().compute(**BIRDS)


def test_expected_calibration_error_by_hand():
    columns = {
        "confidences": [0.9, 0.6, 0.6, 0.8, 1.0],
        "predictions": [0, 0, 0, 0, 1],
        "references": [0, 1, 0, 0, 1],
    }
    # (0.4, 0.6]: accuracy 0.5, confidence 0.6, 2 rows; (0.6, 0.8]: 1 and 0.8; (0.8, 1]: 1 and 0.95, 2 rows.
    expected = 0.4 * 0.1 + 0.2 * 0.2 + 0.4 * 0.05
    five = ExpectedCalibrationError().compute(**columns, num_bins=5)["expected_calibration_error"]
    assert five == pytest.approx(expected)
    # One bin: accuracy 0.8, confidence 0.78.
    one = ExpectedCalibrationError().compute(**columns, num_bins=1)["expected_calibration_error"]
    assert one == pytest.approx(0.02)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    columns = {"predictions": [0, 0], "references": [0, 1]}
    # 0.5 and 0.4 share (0, 0.5]; 0.5 and 0.6 do not, and then both are far off.
    together = ExpectedCalibrationError().compute(confidences=[0.5, 0.4], num_bins=2, **columns)
    apart = ExpectedCalibrationError().compute(confidences=[0.5, 0.6], num_bins=2, **columns)
    assert together["expected_calibration_error"] == pytest.approx(0.05)
    assert apart["expected_calibration_error"] == pytest.approx(0.55)


@pytest.mark.parametrize("bins", [10, 15, 100])
def test_rounding_in_float32_moves_no_confidence_over_an_edge(bins):
    edges = np.arange(1, bins + 1)
    confidences = (edges / bins).astype(np.float32)
    for near in (confidences, np.nextafter(confidences, 2), edges / bins):
        rows = functions.calibration_bins(near, np.ones(bins), bins)[0]
        assert rows.tolist() == [1] * bins
    # What is above an edge is in the next bin.
    above = functions.calibration_bins(edges[:-1] / bins + 1e-5, np.ones(bins - 1), bins)[0]
    assert above.tolist() == [0] + [1] * (bins - 1)


def test_confidence_0_and_1_are_in_range():
    columns = {"confidences": [0.0, 1.0], "predictions": [0, 0], "references": [1, 0]}
    assert ExpectedCalibrationError().compute(**columns)["expected_calibration_error"] == 0


def test_top_k_by_hand():
    columns = {
        "scores": [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]],
        "references": [1, 0, 2, 2],
    }
    # Ranks of the true classes from 0: 1, 2, 2 (class 0 has the same score and goes first), 0.
    for k, expected in ((1, 0.25), (2, 0.5), (3, 1.0)):
        assert TopKAccuracy().compute(**columns, k=k) == {"top_k_accuracy": expected}


def test_constant_scores_do_not_make_every_class_the_top_one():
    columns = {"scores": np.zeros((4, 4)), "references": [0, 1, 2, 3]}
    assert TopKAccuracy().compute(**columns, k=1) == {"top_k_accuracy": 0.25}


def test_top_k_over_more_than_one_block(monkeypatch):
    rng = np.random.default_rng(0)
    scores, references = rng.normal(size=(50, 6)), rng.integers(6, size=50)
    whole = functions.top_k_accuracy(scores, references, 2)
    monkeypatch.setattr(functions, "BLOCK_OF_SCORES", 20)
    assert functions.top_k_accuracy(scores, references, 2) == whole
    scores[40, 1] = np.nan
    with pytest.raises(ValueError, match="row 40 of scores holds NaN"):
        functions.top_k_accuracy(scores, references, 2)


def test_macro_f1_by_hand():
    # Class 0: 2 right of 4 predicted and 2 true, F1 2/3; class 1: 2 right of 2 predicted and 3 true, 4/5; class 5: 0.
    columns = {"predictions": [0, 0, 0, 0, 1, 1], "references": [0, 0, 1, 5, 1, 1]}
    assert MacroF1().compute(**columns)["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert MacroF1().compute(**columns, num_classes=10)["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 10)


@given(tables())
@settings(deadline=None)
def test_scikit_learn_agrees(table):
    predictions, references, scores = table["predictions"], table["references"], table["scores"]
    every = range(scores.shape[1])
    grouped = functions.group_accuracy(predictions, references, table["groups"])
    assert grouped["accuracy"] == pytest.approx(accuracy_score(references, predictions))
    for group, accuracy in grouped["group_accuracies"].items():
        rows = table["groups"] == group
        assert accuracy == pytest.approx(accuracy_score(references[rows], predictions[rows]))
    expected = f1_score(references, predictions, average="macro")
    assert functions.macro_f1(predictions, references) == pytest.approx(expected)
    expected = f1_score(references, predictions, average="macro", labels=every, zero_division=0)
    assert functions.macro_f1(predictions, references, len(every)) == pytest.approx(expected)
    for k in every[1:]:
        if scores.shape[1] == 2:
            expected = top_k_accuracy_score(references, scores[:, 1], k=k, labels=every)
        else:
            expected = top_k_accuracy_score(references, scores, k=k, labels=every)
        assert functions.top_k_accuracy(scores, references, k) == pytest.approx(expected)


@given(tables(), st.permutations(["a", "b", "c"]))
@settings(deadline=None)
def test_relabelling_groups_changes_nothing_but_their_names(table, names):
    new = dict(zip(["left", "right", "upside down"], names, strict=True))
    shares = {"left": 0.5, "right": 0.3, "upside down": 0.2}
    shares = {group: share for group, share in shares.items() if group in table["groups"]}
    columns = columns_of(GroupAccuracy(), table)
    before = functions.group_accuracy(**columns, training_shares=shares)
    columns["groups"] = [new[group] for group in columns["groups"]]
    after = functions.group_accuracy(**columns, training_shares={new[group]: share for group, share in shares.items()})
    for name in ("accuracy", "worst_group_accuracy", "group_adjusted_accuracy"):
        assert after[name] == before[name]
    for name in ("group_accuracies", "group_sizes"):
        assert after[name] == {new[group]: value for group, value in before[name].items()}


@given(tables(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_rows_changes_nothing(table, random):
    order = list(range(len(table["references"])))
    random.shuffle(order)
    shuffled = {name: column[order] for name, column in table.items()}
    for metric in (cls() for cls in CLASSES.values()):
        before = metric.compute(**columns_of(metric, table), **options_of(metric))
        after = metric.compute(**columns_of(metric, shuffled), **options_of(metric))
        assert after == before or list(after.values()) == pytest.approx(list(before.values()))


@pytest.mark.parametrize("name", CLASSES)
@given(table=tables(), data=st.data())
@settings(deadline=None, max_examples=15)
def test_splitting_into_batches_changes_nothing(name, table, data):
    metric = CLASSES[name]()
    columns, options = columns_of(metric, table), options_of(metric)
    at_once = metric.compute(**columns, **options)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(table["references"])), max_size=4)))
    for start, stop in zip([0, *cuts], [*cuts, len(table["references"])], strict=True):
        metric.add_batch(**{name: column[start:stop] for name, column in columns.items()})
    assert metric.compute(**options) == at_once


def test_rows_one_by_one_and_a_last_batch():
    metric = GroupAccuracy()
    for prediction, reference, group in list(zip(*BIRDS.values(), strict=True))[:3]:
        metric.add(prediction=prediction, reference=reference, groups=group)
    rest = {name: column[3:] for name, column in BIRDS.items()}
    assert metric.compute(**rest) == GroupAccuracy().compute(**BIRDS)
    # Nothing is left for the next round.
    assert metric.compute(**rest)["group_sizes"] == {"land": 2, "water": 3}


def test_arrays_that_are_filled_again_are_no_matter():
    metric, reused = MacroF1(), np.array([0, 1])
    metric.add_batch(predictions=reused, references=[0, 1])
    reused[:] = 0
    assert metric.compute() == {"macro_f1": 1.0}


def test_what_was_added_is_there_for_another_try():
    metric = GroupAccuracy()
    metric.add_batch(**BIRDS)
    with pytest.raises(ValueError, match=r"training_shares\['land'\] is -1"):
        metric.compute(training_shares={"land": -1, "water": 2})
    assert metric.compute(predictions=None) == GroupAccuracy().compute(**BIRDS)


def in_process(process, folder):
    metric = GroupAccuracy(num_process=2, process_id=process, experiment_id="split", cache_dir=folder)
    return metric.compute(**{name: column[4 * process : 4 * process + 4] for name, column in BIRDS.items()})


@pytest.mark.slow
def test_splitting_over_processes_changes_nothing(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(in_process, range(2), [str(tmp_path)] * 2))
    assert results == [GroupAccuracy().compute(**BIRDS), None]


@given(tables())
@settings(deadline=None)
def test_the_trainer_counts_the_same(table):
    logits, labels = torch.tensor(table["scores"]).log(), torch.tensor(table["references"])
    counts = ClassificationCounts(num_bins=7)
    counts.update(logits, labels, table["groups"].tolist())
    result = counts.result({"left": 1.0, "right": 2.0, "upside down": 3.0})
    confidences = logits.softmax(-1).max(-1).values
    columns = {"predictions": table["predictions"], "references": labels}
    ece = ExpectedCalibrationError().compute(confidences=confidences, num_bins=7, **columns)
    assert result.ece == ece["expected_calibration_error"]
    grouped = GroupAccuracy().compute(groups=table["groups"], **columns)
    assert result.group_accuracies == grouped["group_accuracies"]
    assert result.worst_group_accuracy == grouped["worst_group_accuracy"]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", CLASSES)
def test_evaluate_loads_every_metric_by_its_path(name, no_network):
    loaded, imported = evaluate.load(metric_path(name)), CLASSES[name]()
    assert loaded.name == imported.name == name
    assert loaded.description
    assert loaded.citation.startswith("@")
    assert "compute" in loaded.inputs_description
    table = {
        "scores": [[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]],
        "confidences": [0.8, 0.6, 0.9],
        "predictions": [0, 0, 1],
        "references": [0, 1, 1],
        "groups": ["a", "b", "b"],
    }
    columns = columns_of(imported, table)
    expected = imported.compute(**columns, **options_of(imported))
    assert loaded.compute(**columns, **({"k": 2} if name == "top_k_accuracy" else {})) == expected


def test_the_names_of_the_package():
    assert {*metrics.__all__} <= {*dir(metrics)}
    with pytest.raises(AttributeError, match="Recall"):
        _ = metrics.Recall


@pytest.mark.slow
def test_counting_does_not_import_evaluate():
    code = "import sys, starft_hf.evaluation; assert 'evaluate' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", CLASSES)
def test_the_examples_of_the_documentation(name):
    module = importlib.import_module(f"starft_hf.evaluation.metrics.{name}.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


def test_a_class_derived_from_a_metric_computes_the_same():
    class Mine(GroupAccuracy):
        """Group accuracy under another name."""

    given = {"predictions": [0, 1, 1], "references": [0, 1, 0], "groups": ["a", "a", "b"]}
    assert Mine().compute(**given) == GroupAccuracy().compute(**given)
