"""The choice among repairs keeps its promise, and every repair is what its paper defines."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from starft_hf.weights.repair import selection
from starft_hf.weights.repair.candidates import ADJUSTMENT, DFR, LAST_LAYER, PROJECTION, candidates
from starft_hf.weights.repair.embedded import Embedded, Repair, softmax, unit, without
from starft_hf.weights.repair.groups import pseudo_groups
from starft_hf.weights.repair.last_layers import adjusted_bias, class_balanced, group_balanced, reweighted
from starft_hf.weights.repair.projections import principal_directions, span
from starft_hf.weights.repair.repairing import _checked
from starft_hf.weights.repair.selection import FOLDS, choose, folds_of_mixed_clusters


DIMENSIONS = 8


def draw(size, lean, seed, noise=0.5):
    """A balanced sample of two classes on two places, and a classifier that leans on the place by `lean`."""
    generator = np.random.default_rng(seed)
    labels, places = np.arange(size) % 2, np.arange(size) // 2 % 2
    images = noise * generator.normal(size=(size, DIMENSIONS))
    images[:, 0] += 2 * labels - 1
    images[:, 1] += 2 * places - 1
    prompts = np.zeros((2, 1, DIMENSIONS))
    prompts[:, 0, :2] = [[-1, -lean], [1, lean]]
    pool = np.zeros((2, DIMENSIONS))
    pool[:, 1] = [1, -0.9]
    return Embedded(unit(images), labels, labels + 2 * places, unit(prompts), 10.0, pool=pool, attributes=unit(pool))


def worst(data, repair):
    right = data.logits(repair).argmax(1) == data.labels
    return min(right[data.groups == group].mean() for group in np.unique(data.groups))


@pytest.mark.parametrize(
    ("lean", "size", "repeats", "taken"),
    [
        pytest.param(0.0, 40, 1, (0, 8), marks=pytest.mark.slow),
        pytest.param(1.0, 120, 1, (40, 50), marks=pytest.mark.slow),
        pytest.param(0.0, 40, 2, (0, 5), marks=pytest.mark.slow),
        pytest.param(0.0, 120, 2, (0, 5), marks=pytest.mark.slow),
        pytest.param(1.0, 40, 2, (15, 50), marks=pytest.mark.slow),
        pytest.param(1.0, 120, 2, (45, 50), marks=pytest.mark.slow),
    ],
)
def test_what_is_chosen_loses_no_more_than_it_promises(lean, size, repeats, taken, monkeypatch):
    monkeypatch.setattr(selection, "_REPEATS", repeats)
    held_out, kept, chosen, gains = draw(4000, lean, seed=1), 0, 0, []
    for seed in range(50):
        data = draw(size, lean, seed=(2, seed))
        each = candidates(data, (ADJUSTMENT, PROJECTION, LAST_LAYER))
        choice = choose(data, each, seed)
        repair = each[choice.chosen].fit(data, np.arange(size))
        gains.append(worst(held_out, repair) - worst(held_out, Repair()))
        kept += gains[-1] >= -choice.standard_error
        chosen += choice.chosen > 0
        assert (choice.chosen == 0) == (not choice.gain > choice.standard_error or choice.best == 0)
    assert kept >= 48
    assert taken[0] <= chosen <= taken[1]
    assert np.mean(gains) > (0.15 if lean and size == 120 else -0.01)


def test_no_image_is_scored_by_what_was_fitted_to_it():
    """Labels that nothing predicts are guessed right half of the time, however closely a last layer fits them."""
    data = draw(80, 0.0, seed=3)
    labels = np.random.default_rng(4).permutation(data.labels)
    data = Embedded(data.images, labels, labels, data.prompts, data.scale)
    choice = choose(data, candidates(data, (LAST_LAYER,)))
    assert all(0.3 < score.average < 0.7 for score in choice.scores)
    assert choice.chosen == 0
    assert all(low <= score.worst_group <= high for score in choice.scores for low, high in [score.interval])


def test_a_last_layer_is_that_of_scikit_learn_on_standardized_embeddings():
    data = draw(60, 1.0, seed=5)
    labels = np.where(data.images[:, 2] > 0.2, 2, data.labels)
    weight, bias = class_balanced(data.images, labels, 0.1)
    scaled = (data.images - data.images.mean(0)) / data.images.std(0)
    expected = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000).fit(scaled, labels)
    found = softmax(data.images @ weight.T + bias)
    np.testing.assert_allclose(found, expected.predict_proba(scaled), atol=1e-9)
    two = class_balanced(data.images, data.labels, 0.1)
    expected = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000).fit(scaled, data.labels)
    np.testing.assert_allclose(softmax(data.images @ two[0].T + two[1]), expected.predict_proba(scaled), atol=1e-9)


def test_dfr_sees_as_many_images_of_every_group_and_every_class():
    generator = np.random.default_rng(6)
    images, labels, groups = unit(generator.normal(size=(90, DIMENSIONS))), np.arange(90) % 3, np.zeros(90, int)
    groups[:5] = 1
    seen = []
    fit = LogisticRegression.fit

    def recorded(self, rows, own):
        seen.append(len(own))
        assert set(own) == {0, 1, 2}
        return fit(self, rows, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogisticRegression, "fit", recorded)
        group_balanced(images, labels, groups, 0.1, generator)
    assert len(seen) > 1
    assert all(10 <= rows <= 12 for rows in seen)


def test_afr_counts_mistakes_more_and_stays_near_the_last_layer_that_was_there():
    data = draw(60, 1.0, seed=7)
    logits, start = data.logits(Repair()), data.classifier
    unchanged = reweighted(data.images, data.labels, logits, start, gamma=4.0, penalty=1e6)
    np.testing.assert_allclose(unchanged[0], start[0], atol=1e-4)
    weight, bias = reweighted(data.images, data.labels, logits, start, gamma=4.0, penalty=1e-2)
    # At the minimum the gradient of weighted cross-entropy and penalty is 0.
    right = softmax(logits)[np.arange(60), data.labels]
    weights = np.exp(-4 * right) / 30
    errors = softmax(data.images @ weight.T + bias) - np.eye(2)[data.labels]
    gradient = (weights / weights.sum() * errors.T) @ data.images + 2e-2 * (weight - start[0])
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_logit_adjustment_lessens_a_preference():
    data = draw(400, 0.0, seed=8)
    logits = data.logits(Repair())
    np.testing.assert_allclose(np.ptp(adjusted_bias(logits, data.labels, 1.0)), 0, atol=0.2)
    leaning = logits + np.array([12.0, 0.0])
    adjusted = leaning + adjusted_bias(leaning, data.labels, 1.0)
    recalls = [
        [(own.argmax(1) == label)[data.labels == label].mean() for label in (0, 1)] for own in (leaning, adjusted)
    ]
    assert recalls[1][1] > recalls[0][1]
    # However frequent the classes are, both count alike.
    more = np.concatenate([np.arange(400), np.flatnonzero(data.labels == 0)])
    expected = adjusted_bias(leaning, data.labels, 2.0)
    np.testing.assert_allclose(adjusted_bias(leaning[more], data.labels[more], 2.0), expected, atol=1e-12)


def test_prism_mini_is_the_projection_of_its_definition():
    columns = unit(np.random.default_rng(9).normal(size=(3, DIMENSIONS))).T
    expected = np.eye(DIMENSIONS) - columns @ np.linalg.inv(columns.T @ columns) @ columns.T
    basis = span(columns.T)
    np.testing.assert_allclose(without(np.eye(DIMENSIONS), basis), expected, atol=1e-12)
    # A template that occurs twice adds no dimension.
    assert len(span(np.concatenate([columns.T, columns.T]))) == 3
    assert len(principal_directions(columns.T, 2)) == 2
    assert len(span(np.zeros((2, DIMENSIONS)))) == 0


def test_what_is_missing_is_not_tried():
    data = draw(40, 1.0, seed=10)
    methods = {candidate.method for candidate in candidates(data)}
    assert methods == {"none", "logit adjustment", "projection", "PRISM-mini", "last layer", "DFR", "AFR"}
    # Without groups in a class DFR is a class-balanced last layer.
    classes = Embedded(data.images, data.labels, data.labels, data.prompts, data.scale)
    assert DFR not in {candidate.method for candidate in candidates(classes)}


def test_rare_pseudo_groups_are_one_group_or_join_another():
    labels = np.repeat([0, 1, 2], 40)
    seen = np.zeros(120, int)
    seen[[0, 1, 40, 41, 80, 81]] = 1
    groups = pseudo_groups(labels, seen)
    assert np.bincount(groups).tolist() == [38, 38, 38, 6]
    assert len(set(groups[seen == 1])) == 1
    # Too few together.
    seen[[40, 41, 80, 81]] = 0
    assert np.bincount(pseudo_groups(labels, seen)).tolist() == [40, 40, 40]
    seen[:20] = 1
    assert np.bincount(pseudo_groups(labels, seen)).min() >= FOLDS
    assert len(np.unique(pseudo_groups(labels, seen))) == 4


def draw_individuals(size, seed, individuals=4, lean=0.4, own_class=1.0):
    """As `draw`, but images show so many individuals of a class, which differ from each other more than classes do.

    With `own_class` below 1 they are places where so many of the images are of one class, and the others of the other.
    """
    generator = np.random.default_rng(seed)
    data, own = draw(size, lean, seed), generator.normal(size=(2 * individuals, 64))
    clusters = 2 * generator.integers(individuals, size=size) + data.labels
    if own_class < 1:
        clusters ^= generator.random(size) > own_class
    images = np.concatenate([0.4 * data.images, 2 * own[clusters] / 8], axis=1)
    wider = {name: np.pad(getattr(data, name), [(0, 0)] * (ndim - 1) + [(0, 64)]) for name, ndim in WIDER.items()}
    clusters = np.unique(clusters, return_inverse=True)[1]
    return replace(data, images=unit(images), clusters=clusters, **wider)


WIDER = {"prompts": 3, "pool": 2, "attributes": 2}


@pytest.mark.parametrize("own_class", [1.0, 0.8])
def test_clusters_stay_together_in_folds_and_in_samples(own_class):
    data = draw_individuals(120, seed=0, own_class=own_class)
    folds = selection._folds(data, np.random.default_rng(0))
    counts = selection._samples(data, np.random.default_rng(0))
    for cluster in np.unique(data.clusters):
        rows = data.clusters == cluster
        assert len(np.unique(folds[rows])) == 1
        assert (counts[:, rows] == counts[:, rows][:, :1]).all()
    for fold in range(FOLDS):
        assert set(data.labels[folds != fold]) == {0, 1}
    # Samples differ, also where every cluster has images of all classes.
    assert len(np.unique(counts, axis=0)) > 100


def test_folds_of_mixed_clusters_never_leave_a_class_to_one_fold():
    # Two videos of every class, each of which shows another class too.
    labels, clusters = np.repeat([0, 1, 1, 2, 2, 0], 3), np.repeat([0, 0, 1, 1, 2, 2], 3)
    for seed in range(50):
        folds = folds_of_mixed_clusters(clusters, labels, np.random.default_rng(seed))
        assert all(len(set(folds[labels == label])) == 2 for label in range(3))
        assert all(len(set(folds[clusters == cluster])) == 1 for cluster in range(3))


def test_unreadable_images_may_not_leave_a_class_with_one_cluster_or_a_group_with_few_images():
    data = draw_individuals(40, seed=0, individuals=2)
    cluster = data.clusters[data.labels == 0][0]
    images = np.where((data.clusters == cluster)[:, None], 0, data.images)
    with pytest.raises(ValueError, match="all images of the class 'circle' have one value of cluster_column"):
        _checked(replace(data, images=images), ("circle", "square"), None)
    few = np.flatnonzero(data.groups == 2)[4:]
    images = np.where(np.isin(np.arange(40), few)[:, None], 0, data.images)
    with pytest.raises(ValueError, match="dataset has 4 images of the group 'circle in the snow'"):
        _checked(
            replace(data, images=images, clusters=None),
            ("circle", "square"),
            ("circle", "square", "circle in the snow", "square in the snow"),
        )


def chosen_on_individuals(own_class):
    """What choices on 20 samples of repeated individuals gain on others, with their promise; how many are repairs."""
    held_out = draw_individuals(4000, seed=1, individuals=400)
    gains, taken = {"clusters": [], "images": []}, Counter()
    for seed in range(20):
        data = draw_individuals(120, seed=(2, seed), own_class=own_class)
        for name, own in (("clusters", data), ("images", replace(data, clusters=None))):
            each = candidates(own, (LAST_LAYER,))
            choice = choose(own, each, seed)
            repair = each[choice.chosen].fit(own, np.arange(len(own.labels)))
            gains[name].append(worst(held_out, repair) - worst(held_out, Repair()) + choice.standard_error)
            taken[name] += choice.chosen > 0
    return gains, taken


def test_repeated_individuals_promise_too_much_unless_they_are_clusters():
    gains, _ = chosen_on_individuals(1.0)
    assert np.mean(np.array(gains["images"]) >= 0) < 0.8
    assert np.mean(np.array(gains["clusters"]) >= 0) >= 0.95


def test_clusters_of_two_classes_keep_last_layers_from_looking_like_repairs():
    gains, taken = chosen_on_individuals(0.97)
    assert np.mean(np.array(gains["clusters"]) >= 0) >= 0.95
    assert taken["images"] > 10
    assert taken["clusters"] < 5
