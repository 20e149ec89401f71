"""What is chosen among, and by what."""

import pytest

from starft_hf.evaluation.results import CurvePoint
from starft_hf.models.loading import load_model
from starft_hf.training.plan import RunInputs
from starft_hf.training.tuning.candidates import Stage, candidates_of, stages, step_at
from starft_hf.training.tuning.result import TuningResult, TuningRow
from starft_hf.training.tuning.selection import best_point, measure_of, with_groups
from tests.support.tiny import TINY_CLIP, make_dataset


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2)]),
        (3, [(0.25, 2), (1, 2)]),
        (4, [(0.25, 2), (1, 2)]),
        (5, [(0.25, 3), (0.5, 2), (1, 2)]),
        (8, [(0.25, 4), (0.5, 2), (1, 2)]),
        (15, [(0.25, 8), (0.5, 4), (1, 4)]),
    ],
)
def test_the_worse_half_ends_at_each_pause_and_two_finish(count, expected):
    assert stages(count) == [Stage(*stage) for stage in expected]


def test_pauses_are_at_whole_steps():
    assert [step_at(until, 10) for until in (0.25, 0.5, 1)] == [3, 5, 10]
    assert step_at(0.25, 1) == 1


@pytest.mark.parametrize(
    ("settings", "methods", "weights", "classes", "expected"),
    [
        ({"regularizer": "kl"}, None, None, 6, "FLYP kl@1.11 kl@3.33 kl@10 kl@30 kl@90 kl@270 kl@810"),
        ({"regularizer": "kl"}, None, None, 2, "FLYP kl@10 kl@30 kl@90 kl@270 kl@810 kl@2430"),
        ({"regularizer": "none"}, None, None, 6, "FLYP"),
        ({"regularizer": "star", "base_loss": "cross_entropy"}, None, [2], 6, "CE star@2"),
        ({}, ["L2-SP", "kl@auto", "attribution", "zero-shot"], [0.5, 7], 6, "L2-SP@0.5 L2-SP@7 kl@30 attribution"),
    ],
)
def test_candidates(settings, methods, weights, classes, expected, config):
    found = candidates_of(config(**settings), methods, weights, classes)
    assert " ".join(one.label for one in found) == expected
    for one in found:
        assert one.weight is None or one.args.reg_weight in (one.weight, "auto")


def test_of_equal_models_the_one_closest_to_the_zero_shot_model_is_best():
    curve = [CurvePoint(0.2, 0.5, 0.6), CurvePoint(0.4, 0.7, 0.6), CurvePoint(0.6, 0.7, 0.1)]
    assert best_point(curve, "worst_group").alpha == 0.2
    assert best_point(curve, "average").alpha == 0.4


def test_the_measure_goes_by_what_is_known(config, dataset, caplog):
    assert measure_of(None, config(group_column="group"), dataset) == "worst_group"
    assert caplog.text == ""
    assert measure_of(None, config(), dataset) == "worst_class"
    assert "No groups are known" in caplog.text
    assert measure_of("average", config(group_column="group"), dataset) == "average"
    assert "15 points lower" in caplog.text
    with pytest.raises(ValueError, match="pass a `datasets` Dataset"):
        measure_of("pseudo_groups", config(), list(dataset))


def test_pseudo_groups_are_those_of_discovery_and_classes_are_groups_without_columns(config, dataset, processor):
    validation, model = make_dataset(seed=4), load_model(str(TINY_CLIP))
    args = config(group_column="group", caption_template="a photo of a {}.")
    given = RunInputs(model, args, dataset, {"v": validation}, processor, ["{} in the snow.", "{} at night."])
    assert with_groups(given, "worst_group") is given
    assert with_groups(given, "worst_class").args.group_column is None
    found = with_groups(given, "pseudo_groups")
    names = found.eval_dataset["v"][found.args.group_column]
    labels = [validation.features["label"].int2str(label) for label in validation["label"]]
    assert all(name.startswith(label) for name, label in zip(names, labels, strict=True))
    assert args.group_column == "group"


def test_a_result_says_what_its_figures_are_worth():
    start = TuningRow("zero-shot", None, 0.0, 0.8, 0.5, 0.0)
    best = TuningRow("kl", 30.0, 0.6, 0.82, 0.6, 1.0)
    result = TuningResult(best, [start, best], "worst_group", 11, "validation", 0, "out")
    text = result.as_markdown()
    assert "kl with weight 30, interpolated at alpha 0.6, with 60.0%; zero-shot 50.0%" in text
    assert "the best of 11 models on it, so they are optimistic; only a test set shows" in text
    assert "| kl@30 | 0.6 | 82.0 | 60.0 | 100% | chosen |" in text
    assert TuningResult.from_dict(result.as_dict()) == result
    figure = result.figure()
    assert figure.axes[0].get_xscale() == "log"
