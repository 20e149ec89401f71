"""How features of images are associated with what is known of them, such as a label, and tests against chance.

The measure is the probability that an image with the label has more of a feature than one without it (the area under
the ROC curve): 0.5 without an association, and independent of the feature's unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from starft_hf.spuriosity.statistics import Floats, Ints


# Of a feature with fewer known values among the rows of a target nothing is said.
_FEWEST = 10
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Target:
    """Images `rows`, `(n,)`, of which those where `members`, `(n,)`, are compared with the others."""

    name: str
    rows: Ints
    members: NDArray[np.bool_]


@dataclass(frozen=True)
class Tested:
    """Associations of T targets with F features.

    Attributes:
        scores: correlation with the ranks of a feature, times the root of the number of images less one, `(T, F)`.
        p_values: how often chance gives any target and feature as large a score, `(T, F)`.
        critical: scores above it, of any sign, are those with a p-value of at most `alpha`.
    """

    scores: Floats
    p_values: Floats
    critical: float


def ranks(values: NDArray[Any]) -> NDArray[np.float32]:
    """The ranks of features `(n, F)` among images, centered and of length 1; 0 where a value is missing (NaN).

    A feature that is constant, or of which hardly a value is known, is 0 everywhere.
    """
    found = np.empty(values.shape, dtype=np.float32)
    is_whole = ~np.isnan(values).any(0)
    if is_whole.any():
        found[:, is_whole] = rankdata(values[:, is_whole], axis=0)
    for column in np.flatnonzero(~is_whole):
        known = ~np.isnan(values[:, column])
        found[:, column] = np.nan
        if known.sum() >= _FEWEST:
            found[known, column] = rankdata(values[known, column])
    with np.errstate(invalid="ignore"):
        centered = found - np.nan_to_num(np.nansum(found, 0) / np.maximum((~np.isnan(found)).sum(0), 1))
    centered = np.nan_to_num(centered)
    length = np.linalg.norm(centered, axis=0)
    scaled: NDArray[np.float32] = np.where(length > _ROUNDING, centered / np.maximum(length, _ROUNDING), 0)
    return scaled.astype(np.float32)


def auc(values: NDArray[Any], members: NDArray[np.bool_]) -> float:
    """How often a member has a larger value than another image, ties counting half; 0.5 if either has no values."""
    known = ~np.isnan(values)
    own, others = int((members & known).sum()), int((~members & known).sum())
    if not own or not others:
        return 0.5
    total = rankdata(values[known])[members[known]].sum()
    return float((total - own * (own + 1) / 2) / (own * others))


def measure_targets(
    features: NDArray[Any], targets: Sequence[Target], *, alpha: float, permutations: int, seed: int = 0
) -> Tested:
    """Score every target and feature `(N, F)`, and compare the scores with those of permuted targets.

    The p-values are corrected for the number of targets and features: of data without any association, no more than
    the fraction `alpha` gives even one p-value so small (single-step maxT, as in `measure_associations`). That bounds
    the false discovery rate as well.
    """
    generator = np.random.default_rng(seed)
    scores = np.zeros((len(targets), features.shape[1]))
    largest = np.zeros(permutations)
    ranked: NDArray[np.float32] | None = None
    for index, target in enumerate(targets):
        if ranked is None or target.rows is not targets[index - 1].rows:
            ranked = ranks(features[target.rows])
        members = _unit(target.members)
        scale = np.sqrt(max(len(members) - 1, 1))
        scores[index] = scale * (members @ ranked)
        shuffled = generator.permuted(np.tile(members, (permutations, 1)), axis=1)
        by_chance = scale * np.abs(shuffled @ ranked).max(1, initial=0)
        largest = np.maximum(largest, by_chance)
    as_large = permutations - np.searchsorted(np.sort(largest), np.abs(scores) - 1e-6)
    p_values: Floats = (1 + as_large) / (1 + permutations)
    # As many of the largest by chance may be above it as leave the p-value at most alpha.
    above = int(np.floor(alpha * (permutations + 1))) - 1
    critical = float(np.sort(largest)[::-1][above]) if above >= 0 else np.inf
    return Tested(scores, p_values, critical)


def independent(
    features: NDArray[Any], target: Target, candidates: Sequence[int], critical: float, most: int
) -> list[int]:
    """Those of the candidates that tell something of a target that the ones before them do not, at most `most`.

    A candidate is kept if its score, once what it shares with those that were kept is removed from it and from the
    target, is still critical and of the same sign.
    """
    kept: list[int] = []
    columns = ranks(features[np.ix_(target.rows, np.array(candidates, dtype=int))]).astype(np.float64)
    members = _unit(target.members).astype(np.float64)
    basis = np.empty((len(members), 0))
    for place, candidate in enumerate(candidates):
        column, rest = columns[:, place], members - basis @ (basis.T @ members)
        left = column - basis @ (basis.T @ column)
        size, other = np.linalg.norm(left), np.linalg.norm(rest)
        if size < 0.1 or other < _ROUNDING:
            continue
        score = np.sqrt(max(len(members) - 1, 1)) * float(left @ rest) / (size * other)
        if abs(score) <= critical or score * float(column @ members) < 0:
            continue
        kept.append(candidate)
        basis = np.column_stack([basis, left / size])
        if len(kept) == most:
            break
    return kept


def _unit(members: NDArray[np.bool_]) -> NDArray[np.float32]:
    centered = members.astype(np.float32) - members.mean(dtype=np.float32)
    length = float(np.linalg.norm(centered))
    return centered / length if length > _ROUNDING else centered
