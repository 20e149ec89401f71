"""Metrics of images of several classes, against scikit-learn."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from starft_hf import evaluate_zero_shot
from starft_hf.evaluation.multi_label import multi_label_result
from starft_hf.evaluation.results import result_from_dict
from tests.support.multi_label import make_multi_label_dataset


NAMES = ["owl", "truck", "violin", "fern", "kettle"]


@pytest.fixture
def scores():
    """Logits of 60 images with ties, their classes, of which the last one is nowhere, and their groups."""
    rng = np.random.default_rng(0)
    targets = rng.random((60, 5)) < 0.3
    targets[:, 4] = False
    logits = np.round(rng.normal(size=(60, 5)) + targets, 1)
    groups = rng.choice(["left", "right"], 60).tolist()
    return logits, targets, groups


def test_metrics_are_those_of_scikit_learn(scores):
    logits, targets, groups = scores
    found = multi_label_result(logits, targets, NAMES, groups)
    ap = average_precision_score(targets[:, :4], logits[:, :4], average=None)
    predicted = logits >= 0
    f1 = f1_score(targets, predicted, average=None, labels=range(4))
    assert found.class_ap == pytest.approx(dict(zip(NAMES, ap, strict=False)), abs=0)
    assert found.class_f1 == pytest.approx(dict(zip(NAMES, f1, strict=False)))
    assert found.map == pytest.approx(average_precision_score(targets[:, :4], logits[:, :4], average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(targets, predicted, average="micro"))
    assert found.macro_f1 == pytest.approx(f1_score(targets, predicted, average="macro", labels=range(4)))
    assert (found.worst_class_ap, found.worst_class_f1) == (ap.min(), pytest.approx(f1.min()))
    assert found.worst_class == NAMES[ap.argmin()]
    loss = torch.nn.BCEWithLogitsLoss()(torch.tensor(logits), torch.tensor(targets).double())
    assert found.loss == pytest.approx(loss.item())
    for name in ("left", "right"):
        rows = np.array(groups) == name
        own = average_precision_score(targets[rows][:, :4], logits[rows][:, :4], average="macro")
        assert found.group_map[name] == pytest.approx(own)
        assert found.group_f1[name] == pytest.approx(f1_score(targets[rows], predicted[rows], average="micro"))
    assert found.class_sizes["kettle"] == 0
    assert "kettle" not in found.class_ap


def test_a_group_counts_the_classes_it_has_and_one_without_any_counts_nowhere(scores):
    logits, targets, groups = scores
    targets[np.array(groups) == "left"] = False
    targets[np.array(groups) == "left", 0] = True
    rows = [*groups, "empty"]
    logits, targets = np.vstack([logits, np.ones(5)]), np.vstack([targets, np.zeros(5, bool)])
    found = multi_label_result(logits, targets, NAMES, rows)
    # All of its images have the only class that it has.
    assert found.group_map["left"] == 1.0
    assert found.group_map.keys() == found.group_f1.keys() == {"left", "right"}
    assert found.group_sizes["empty"] == 1
    assert found.worst_group == "right"
    logged = found.logged(True)
    assert logged["worst_group_f1"] == min(found.group_f1.values())
    assert logged["map_left"] == 1.0
    assert found.logged(wanted="eval_class_ap_owl")["class_ap_owl"] == found.class_ap["owl"]
    assert result_from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_nan_is_never_a_prediction_and_nothing_to_measure_is_an_error(scores):
    logits, targets, _ = scores
    found = multi_label_result(np.full_like(logits, np.nan), targets, NAMES)
    assert found.micro_f1 == 0
    assert np.isnan(found.loss)
    assert found.map == pytest.approx(targets[:, :4].mean(0).mean())
    assert found.worst_group is None
    with pytest.raises(ValueError, match="no image of the evaluation dataset has a class"):
        multi_label_result(logits, np.zeros_like(targets), NAMES)


def test_evaluation_needs_a_bias_and_refuses_what_is_for_one_class(clip, processor):
    dataset = make_multi_label_dataset(8)
    with pytest.raises(ValueError, match="the CLIPModel has no logit_bias"):
        evaluate_zero_shot(clip, processor, dataset, multi_label=True, progress=False)
    with pytest.raises(ValueError, match="keep_mistakes is for images of one class each"):
        evaluate_zero_shot(clip, processor, dataset, multi_label=True, keep_mistakes=3)
