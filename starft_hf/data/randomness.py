"""Randomness keyed to a sample or to a batch.

Everything random about a sample (its templates, its crop) is a function of the seed, the epoch and the sample, which
counts as another one each further time that an epoch has it. The global generators are neither read nor advanced, so
batch size, workers, ranks, caching and resuming change nothing.
Everything that a batch shares is a function of the seed, the optimizer step and the place of the batch in it: every
process knows these without communication, after resuming and with iterable datasets too.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Draw(IntEnum):
    """What is drawn, each by a generator of its own, so that switching one off does not change the others."""

    CAPTION_TEMPLATE = 0
    SPURIOUS_TEMPLATE = 1
    TRANSFORM = 2
    SHARED_CAPTION_TEMPLATE = 3
    SHARED_SPURIOUS_TEMPLATE = 4
    OTHER_CLASSES = 5
    CAPTION = 6
    ORDER = 7
    SUBSET = 8
    STRATA = 9
    STRATUM = 10
    POSITIVE_CLASS = 11


def sample_generator(seed: int, epoch: int, sample: int, draw: Draw) -> np.random.Generator:
    """The generator of one draw of one sample in one epoch."""
    return np.random.default_rng((seed, epoch, sample, int(draw)))


def batch_generator(seed: int, step: int, part: int, draw: Draw) -> np.random.Generator:
    """The generator of one draw that all processes share for batch `part` of those that an optimizer step accumulates.

    No draw is used both for samples and for batches.
    """
    return np.random.default_rng((seed, step, part, int(draw)))


@contextmanager
def global_generators_from(generator: np.random.Generator) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators from `generator`, and restore their states at the end.

    For a user's own image transform, which draws from the global generators.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed = int(generator.integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
