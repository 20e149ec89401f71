"""Intervals of accuracies hold as often as they say."""

import numpy as np
import pytest
from scipy.stats import binomtest

from starft_hf.evaluation.intervals import accuracy_interval, independent_images, worst_group_interval


@pytest.mark.parametrize(("right", "images"), [(0, 5), (10, 10), (7, 9), (450, 500)])
def test_it_is_the_exact_interval(right, images):
    known = binomtest(right, images).proportion_ci(0.95, method="exact")
    assert accuracy_interval(right / images, images) == pytest.approx((known.low, known.high), abs=1e-9)


@pytest.mark.parametrize(
    ("accuracies", "images"),
    [([0.8] * 12, 40), ([0.8] * 4, 120), ([0.95] * 12, 20), ([0.6, 0.8, 0.8, 0.8], 100), ([0.7], 30)],
)
def test_the_interval_of_the_worst_group_holds_it(accuracies, images):
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(len(accuracies)), images)
    held = 0
    for _ in range(200):
        right = (generator.random(len(groups)) < np.array(accuracies)[groups]).astype(float)
        low, high = worst_group_interval(right, groups)
        held += low <= min(accuracies) <= high
        assert low <= min(right[groups == group].mean() for group in set(groups)) <= high
    # Two standard errors of the share below 95%.
    assert held / 200 >= 0.92


def test_the_interval_of_clusters_holds_the_worst_group():
    """Images of an individual are right or wrong together; by images, it would hold far less often."""
    generator = np.random.default_rng(0)
    clusters, groups = np.repeat(np.arange(60), 8), np.repeat([0, 1], 240)
    held = {"clusters": 0, "images": 0}
    for _ in range(200):
        right = (generator.random(60) < 0.7).astype(float)[clusters]
        for name, given in (("clusters", clusters), ("images", None)):
            low, high = worst_group_interval(right, groups, given)
            held[name] += low <= 0.7 <= high
    assert held["clusters"] / 200 >= 0.92
    assert held["images"] / 200 < 0.8


@pytest.mark.parametrize(("clusters", "groups"), [(2, 1), (3, 1), (5, 1), (3, 4)])
def test_the_interval_of_few_clusters_allows_for_what_is_not_known_of_them(clusters, groups):
    generator = np.random.default_rng(0)
    rows = np.repeat(np.arange(groups * clusters), 40)
    held = 0
    for _ in range(200):
        # Accuracies of clusters with a mean of 50%, and a correlation of 0.3 between the images of one.
        accuracies = generator.beta(7 / 6, 7 / 6, groups * clusters)
        right = (generator.random(len(rows)) < accuracies[rows]).astype(float)
        low, high = worst_group_interval(right, rows // clusters, rows)
        held += low <= 0.5 <= high
    assert held / 200 >= 0.92


def test_of_one_cluster_nothing_is_known():
    assert worst_group_interval(np.array([1.0, 0, 1, 1]), np.zeros(4, int), np.zeros(4, int)) == (0, 1)


def test_clusters_that_say_nothing_are_images():
    generator = np.random.default_rng(0)
    right, clusters = (generator.random(4000) < 0.8).astype(float), np.arange(4000) // 4
    assert independent_images(right, clusters) == pytest.approx(4000, rel=0.1)
    assert independent_images(np.ones(12), np.arange(12) // 4) == 3
    assert independent_images(np.array([1.0, 0.0]), np.array([5, 5])) == 1
