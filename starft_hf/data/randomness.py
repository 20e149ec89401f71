"""Randomness that belongs to a sample.

What is random about a sample (its templates, its crop) is a function of the seed, the epoch and the sample alone. The
global generators are neither read nor advanced, so batch size, workers, ranks, caching and resuming change nothing.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Draw(IntEnum):
    """What is drawn. Each has a stream of its own, so that switching one off leaves the others as they were."""

    CAPTION_TEMPLATE = 0
    SPURIOUS_TEMPLATE = 1
    TRANSFORM = 2


def sample_generator(seed: int, epoch: int, sample: int, draw: Draw) -> np.random.Generator:
    """The generator of one draw of one sample in one epoch."""
    return np.random.default_rng((seed, epoch, sample, int(draw)))


@contextmanager
def global_generators_from(generator: np.random.Generator) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators from `generator`, and put their states back at the end.

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
