"""The repairs that are tried, each with its settings, from the simplest to those that fit the most."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from starft_hf.weights.repair import last_layers
from starft_hf.weights.repair.embedded import Embedded, Ints, Repair
from starft_hf.weights.repair.projections import principal_directions, span


NONE = "none"
ADJUSTMENT = "logit adjustment"
WISE_FT = "WiSE-FT"
PROJECTION = "projection"
PRISM_MINI = "PRISM-mini"
LAST_LAYER = "last layer"
DFR = "DFR"
AFR = "AFR"
AFR_OF_START = "AFR, zero-shot errors"

METHODS = (NONE, ADJUSTMENT, WISE_FT, PROJECTION, PRISM_MINI, LAST_LAYER, DFR, AFR, AFR_OF_START)
NEEDS_START = (WISE_FT, AFR_OF_START)
NEEDS_POOL = (PROJECTION, PRISM_MINI)
# They fit a last layer to the validation images, and so learn what is correlated with the classes there.
FITS_LAST_LAYER = (LAST_LAYER, DFR, AFR, AFR_OF_START)

ALPHAS = (0.0, 0.25, 0.5, 0.75)
_TAUS = (0.5, 1.0, 2.0)
_DIRECTIONS = (1, 2, 4, 8)
_STRENGTHS = (1e-3, 1e-2, 1e-1)
_PENALTIES = (1e-1, 1e-2, 1e-3)
_GAMMAS = (1.0, 4.0)

_SEED = 0


@dataclass(frozen=True)
class Candidate:
    """A repair to try.

    Attributes:
        method: one of `METHODS`.
        settings: what distinguishes it from others of the method.
        fit: from the data and the rows to fit to, to the repair.
    """

    method: str
    settings: Mapping[str, Any]
    fit: Callable[[Embedded, Ints], Repair]


def candidates(data: Embedded, methods: tuple[str, ...] = METHODS) -> list[Candidate]:
    """The repairs of these methods that `data` has what is needed for; the first is that of nothing."""
    return [candidate for candidate in _all(data) if candidate.method in (NONE, *methods)]


def _all(data: Embedded) -> Iterator[Candidate]:
    yield Candidate(NONE, {}, _fixed(Repair()))
    for tau in _TAUS:
        yield Candidate(ADJUSTMENT, {"tau": tau}, partial(_adjustment, tau=tau))
    for alpha in data.mixed:
        yield Candidate(WISE_FT, {"alpha": alpha}, _fixed(Repair(alpha=alpha)))
    if data.pool is not None:
        known = 0
        for number in _DIRECTIONS:
            basis = principal_directions(data.pool, number)
            # Of what is left, something must tell classes apart.
            if known < len(basis) <= data.images.shape[1] - data.num_classes:
                known = len(basis)
                yield Candidate(PROJECTION, {"directions": known}, _fixed(Repair(basis=basis)))
    if data.attributes is not None:
        basis = span(data.attributes)
        if 0 < len(basis) <= data.images.shape[1] - data.num_classes:
            settings = {"attributes": len(basis)}
            yield Candidate(PRISM_MINI, settings, _fixed(Repair(basis=basis, of_texts=False)))
    for penalty in _PENALTIES:
        yield Candidate(LAST_LAYER, {"penalty": penalty}, partial(_reweighted, gamma=0.0, penalty=penalty))
    for strength in _STRENGTHS:
        yield Candidate(LAST_LAYER, {"C": strength}, partial(_class_balanced, strength=strength))
    if len(np.unique(np.stack([data.labels, data.groups]), axis=1).T) > len(np.unique(data.labels)):
        for strength in _STRENGTHS:
            yield Candidate(DFR, {"C": strength}, partial(_group_balanced, strength=strength))
    for method, of_start in ((AFR, False), (AFR_OF_START, True)):
        if of_start and data.start_logits is None:
            continue
        for gamma in _GAMMAS:
            for penalty in _PENALTIES:
                fit = partial(_reweighted, gamma=gamma, penalty=penalty, of_start=of_start)
                yield Candidate(method, {"gamma": gamma, "penalty": penalty}, fit)


def _fixed(repair: Repair) -> Callable[[Embedded, Ints], Repair]:
    """A repair that is not fitted to images."""
    return lambda data, rows: repair


def _adjustment(data: Embedded, rows: Ints, tau: float) -> Repair:
    weight, bias = data.classifier
    logits = data.logits(Repair())[rows]
    return Repair(head=(weight, bias + last_layers.adjusted_bias(logits, data.labels[rows], tau)))


def _class_balanced(data: Embedded, rows: Ints, strength: float) -> Repair:
    return Repair(head=last_layers.class_balanced(data.images[rows], data.labels[rows], strength))


def _group_balanced(data: Embedded, rows: Ints, strength: float) -> Repair:
    generator = np.random.default_rng(_SEED)
    parts = (data.images[rows], data.labels[rows], data.groups[rows])
    return Repair(head=last_layers.group_balanced(*parts, strength, generator))


def _reweighted(data: Embedded, rows: Ints, gamma: float, penalty: float, of_start: bool = False) -> Repair:
    logits = data.start_logits if of_start else data.logits(Repair())
    assert logits is not None
    parts = (data.images[rows], data.labels[rows], logits[rows], data.classifier)
    return Repair(head=last_layers.reweighted(*parts, gamma=gamma, penalty=penalty))
