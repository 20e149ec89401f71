"""Mutual information, permutation tests and agreement, against other ways of computing them."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mutual_info_score

from starft_hf.spuriosity.statistics import agreement, count_cells, labels_concerned, measure_associations


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=300)
    background = np.where(rng.random(300) < 0.5, labels % 2, rng.integers(-1, 3, 300))
    style = rng.integers(3, 5, 300)
    return labels, [background, style]


def test_information_and_effects_are_their_definitions(data):
    labels, assigned = data
    found = measure_associations(labels, assigned, 4, 5, permutations=9)
    for attribute in range(5):
        has = assigned[0 if attribute < 3 else 1] == attribute
        assert found.information[attribute] == pytest.approx(mutual_info_score(labels, has), abs=1e-12)
        for label in range(4):
            own = labels == label
            assert found.cell_information[label, attribute] == pytest.approx(mutual_info_score(own, has), abs=1e-12)
            assert found.effects[label, attribute] == pytest.approx(has[own].mean() - has[~own].mean(), abs=1e-12)
            assert found.shares[label, attribute] == pytest.approx(has[own].mean(), abs=1e-12)


def test_p_values_are_shares_of_permutations_with_a_larger_maximum(data):
    labels, assigned = data
    found = measure_associations(labels, assigned, 4, 5, permutations=200, seed=3)
    generator = np.random.default_rng(3)
    largest = []
    for _ in range(200):
        shuffled = generator.permutation(labels)
        has = [assigned[0 if attribute < 3 else 1] == attribute for attribute in range(5)]
        largest.append(max(mutual_info_score(shuffled, column) for column in has))
    expected = [(1 + sum(value >= mi - 1e-12 for value in largest)) / 201 for mi in found.information]
    assert found.p_values == pytest.approx(expected)
    assert found.p_values[0] == pytest.approx(1 / 201)
    assert found.p_values[3] > 0.05


def test_chance_alone_is_rarely_significant_however_many_attributes_there_are():
    rng = np.random.default_rng(1)
    smallest = []
    for run in range(100):
        labels, assigned = rng.integers(3, size=120), [rng.integers(40, size=120)]
        found = measure_associations(labels, assigned, 3, 40, permutations=99, seed=run)
        smallest.append((found.p_values.min(), found.cell_p_values.min()))
    # 5 of 100 are expected; 12 or more have a probability below 0.5%.
    assert all(count < 12 for count in (np.array(smallest) <= 0.05).sum(0))


def test_of_many_small_labels_those_that_chance_explains_are_not_named():
    """An attribute that is correlated with one label differs by chance from label to label for the others, too."""
    named, missed = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = np.repeat(np.arange(50), 40)
        shares = np.where(labels == 0, 0.9, 0.25)
        found = measure_associations(labels, [(rng.random(2000) >= shares).astype(int)], 50, 2, permutations=400)
        assert found.p_values[0] <= 0.01
        assert (np.abs(found.effects[:, 0]) >= 0.05).sum() > 15
        chosen = labels_concerned(found, 0.05)
        named += chosen[1:, 0].sum()
        missed += not chosen[0, 0]
    assert missed == 0
    assert named <= 5


def test_labels_are_chosen_by_benjamini_and_hochberg(data):
    labels, assigned = data
    found = measure_associations(labels, assigned, 4, 5, permutations=200, seed=3)
    generator, background = np.random.default_rng(3), assigned[0]
    shuffles = [generator.permutation(labels) for _ in range(200)]
    for label in range(4):
        chance = [mutual_info_score(shuffled == label, background == 0) for shuffled in shuffles]
        own = mutual_info_score(labels == label, background == 0)
        expected = (1 + sum(value >= own - 1e-12 for value in chance)) / 201
        assert found.label_p_values[label, 0] == pytest.approx(expected)
    made = replace(
        found,
        effects=np.array([[0.5], [0.2], [0.04], [0.1]]),
        label_p_values=np.array([[0.001], [0.037], [0.02], [0.3]]),
        cell_information=np.array([[0.3], [0.2], [0.1], [0.1]]),
    )
    assert labels_concerned(made, 0.05)[:, 0].tolist() == [True, True, False, False]
    made = replace(made, label_p_values=np.full((4, 1), 0.6))
    assert labels_concerned(made, 0.05)[:, 0].tolist() == [True, False, False, False]


def test_agreement_is_cohens_kappa(data):
    rng = np.random.default_rng(2)
    first, second = rng.integers(-1, 3, 200), rng.integers(-1, 3, 200)
    second[:120] = first[:120]
    kappa = agreement([first], [second], 4)
    for attribute in range(3):
        assert kappa[attribute] == pytest.approx(cohen_kappa_score(first == attribute, second == attribute))
    assert kappa[3] == 0


def test_counts_of_labels_and_attributes_that_do_not_occur_are_zero():
    counts = count_cells(np.array([0, 2, 2]), [np.array([1, -1, 1]), np.array([2, 2, 2])], 4, 4)
    assert counts.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    found = measure_associations(np.array([0, 2, 2]), [np.array([1, -1, 1])], 4, 3, permutations=5)
    assert found.effects[[1, 3]].tolist() == [[0] * 3] * 2
    found = measure_associations(np.array([0, 2, 2]), [np.array([-1, -1, -1])], 4, 0, permutations=5)
    assert found.p_values.shape == (0,)
