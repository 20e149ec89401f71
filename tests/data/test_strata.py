"""Strata: rows by class or group, draws of them, and epochs that have as many of each."""

import numpy as np
import pytest

from starft_hf.data.strata import balanced_epoch, drawn_rows, rows_by


@pytest.mark.parametrize("sizes", [(5, 3, 1), (1, 1), (7,), (2, 9, 4, 4, 30)])
def test_epochs_have_as_many_places_of_every_stratum_and_use_its_rows_equally_often(sizes):
    keys = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    strata, size = list(rows_by(keys.tolist()).values()), len(keys)
    used, of_strata = np.zeros(size, dtype=int), np.zeros(len(sizes), dtype=int)
    for epoch in range(20):
        order = balanced_epoch(strata, seed=3, epoch=epoch)
        assert len(order) == len(set(order.tolist())) == size
        rows, places = np.unique(order % size, return_counts=True)
        # The repetitions of a row are counted without gaps.
        repeats = [sorted(order[order % size == row] // size) for row in rows]
        assert repeats == [[*range(count)] for count in places]
        used[rows] += places
        of_strata += (counts := np.bincount(keys[order % size], minlength=len(sizes)))
        assert np.ptp(counts) <= 1
        assert all(np.ptp(used[stratum]) <= 1 for stratum in strata)
        # Over the epochs, no stratum is favored.
        assert np.ptp(of_strata) <= 1


def test_an_epoch_is_a_function_of_seed_and_epoch():
    strata = list(rows_by([0] * 40 + [1] * 8).values())
    first = balanced_epoch(strata, 0, 5)
    assert (balanced_epoch(strata, 0, 5) == first).all()
    assert (balanced_epoch(strata, 1, 5) != first).any()
    assert (balanced_epoch(strata, 0, 6) != first).any()


def test_more_draws_add_to_fewer():
    rows = np.arange(100, 120)
    drawn = [drawn_rows(rows, number, seed=1) for number in (3, 8, 50)]
    assert drawn[1][:3] == drawn[0]
    assert sorted(drawn[2]) == rows.tolist()
    assert drawn_rows(rows, 8, seed=2) != drawn[1] != drawn_rows(rows, 8, seed=1, stratum=1)
