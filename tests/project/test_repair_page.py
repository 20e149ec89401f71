"""The page of the repairs says what the stored runs say."""

import numpy as np
import pytest

from benchmarks import repair, repair_report
from benchmarks.beyond import Store
from starft_hf.weights.repair.embedded import Embedded


def test_the_page_is_that_of_the_stored_runs():
    store = Store(repair.RESULTS)
    assert repair.complete_blocks(store)
    assert (repair.FOLDER / "REPAIR.md").read_text(encoding="utf-8") == repair_report.page(store)


def test_blocks_without_all_of_their_cells_do_not_count(tmp_path):
    store = Store(tmp_path / "repair.json")
    first = repair.blocks(1)[0]
    for cell in first[:-1]:
        store.add(cell, {})
    assert repair.complete_blocks(store) == []
    store.add(first[-1], {})
    assert repair.complete_blocks(Store(tmp_path / "repair.json")) == [first]


@pytest.mark.parametrize("size", repair.SIZES)
def test_small_validation_sets_are_balanced(size):
    """Groups have equally many images, and within a group the classes do, as far as that goes."""
    cells = np.random.default_rng(0).permutation(np.arange(396) % 12)
    rows = np.arange(396.0)[:, None]
    data = Embedded(rows, cells % 6, cells % 2 + 2 * (cells // 6), np.zeros((6, 1, 1)), 1.0)
    found = repair.balanced(data, size, seed=0)
    counts = np.unique(np.stack([found.groups, found.labels]), axis=1, return_counts=True)[1]
    assert np.bincount(found.groups).tolist() == [size // 4] * 4
    assert np.ptp(counts) <= 1
    assert (found.images[:, 0] == np.unique(found.images[:, 0])).all()
