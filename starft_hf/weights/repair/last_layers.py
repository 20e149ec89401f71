"""Last layers refitted on embeddings. Each returns a weight `(classes, D)` and a bias `(classes,)`."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from starft_hf.weights.repair.embedded import Floats, Ints, softmax


# Group-balanced subsets whose last layers DFR averages.
DRAWS = 5


def class_balanced(images: Floats, labels: Ints, strength: float) -> tuple[Floats, Floats]:
    """Logistic regression with classes weighted equally.

    Args:
        images: unit rows `(N, D)`.
        labels: `(N,)`, with every class.
        strength: the inverse of the L2 penalty, as scikit-learn's `C`.
    """
    scaler = StandardScaler().fit(images)
    fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000).fit(
        scaler.transform(images), labels
    )
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:
        # Of two classes scikit-learn returns the difference.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def group_balanced(
    images: Floats, labels: Ints, groups: Ints, strength: float, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """Deep feature reweighting (DFR, arXiv 2204.02937): the mean over subsets with as many images of every group.

    The penalty is L2, as for `class_balanced`, where the paper's is L1.
    """
    layers = [class_balanced(images[rows], labels[rows], strength) for rows in _draws(labels, groups, generator)]
    weights, biases = zip(*layers, strict=True)
    return np.mean(weights, 0), np.mean(biases, 0)


def _draws(labels: Ints, groups: Ints, generator: np.random.Generator) -> list[Ints]:
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    size, classes = min(map(len, members)), np.unique(labels)
    draws = []
    for _ in range(DRAWS):
        rows = np.concatenate([generator.choice(own, size, replace=False) for own in members])
        # A group may have images of several classes, so that a small subset misses one.
        missing = np.setdiff1d(classes, labels[rows])
        more = [generator.choice(np.flatnonzero(labels == label)) for label in missing]
        draws.append(np.concatenate([rows, np.array(more, dtype=np.int64)]))
    return draws


def reweighted(
    images: Floats,
    labels: Ints,
    logits: Floats,
    start: tuple[Floats, Floats],
    *,
    gamma: float,
    penalty: float,
) -> tuple[Floats, Floats]:
    """Automatic feature reweighting (AFR, arXiv 2306.11074): images that a model gets wrong count more.

    The weight of an image is `exp(-gamma p)` over the size of its class, where p is the probability of its class. The
    penalty is on the difference from the last layer that was there. With gamma 0 classes are weighted equally, and
    nothing else.

    Args:
        images: unit rows `(N, D)`.
        labels: `(N,)`.
        logits: of the model whose errors count, `(N, classes)`.
        start: the last layer that was there.
        gamma: how much errors count.
        penalty: on the squared difference from `start`.
    """
    probabilities = softmax(logits)[np.arange(len(labels)), labels]
    weights = np.exp(-gamma * probabilities) / np.bincount(labels)[labels]
    return _anchored(images, labels, weights / weights.sum(), start, penalty)


def _anchored(
    images: Floats, labels: Ints, weights: Floats, start: tuple[Floats, Floats], penalty: float
) -> tuple[Floats, Floats]:
    """The minimum of weighted cross-entropy plus `penalty` times the squared difference from `start`."""
    rows = np.concatenate([images, np.ones((len(images), 1))], axis=1)
    before = np.concatenate([start[0], start[1][:, None]], axis=1)
    targets = np.eye(len(before))[labels]

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        change = flat.reshape(before.shape)
        logits = rows @ (before + change).T
        log_sum = logsumexp(logits, axis=1)
        losses = log_sum - (logits * targets).sum(1)
        errors = weights[:, None] * (np.exp(logits - log_sum[:, None]) - targets)
        return float(weights @ losses + penalty * flat @ flat), (errors.T @ rows + 2 * penalty * change).ravel()

    found = minimize(loss_and_gradient, np.zeros(before.size), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    layer = before + found.x.reshape(before.shape)
    return layer[:, :-1], layer[:, -1]


def adjusted_bias(logits: Floats, labels: Ints, tau: float) -> Floats:
    """Logit adjustment (arXiv 2007.07314): `-tau` times the log of how often every class is predicted, `(classes,)`.

    The prior is the mean probability of a class where all classes are equally frequent, so that it holds what the
    model has learned of the frequencies of the training set, and 1 / classes for a model that prefers none.
    """
    probabilities = softmax(logits)
    prior = np.mean([probabilities[labels == label].mean(0) for label in np.unique(labels)], 0)
    return -tau * np.log(np.maximum(prior, np.finfo(np.float64).tiny))
