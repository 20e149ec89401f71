"""The page of the repairs says what the stored runs say."""

from functools import partial

import numpy as np
import pytest

from benchmarks import repair, repair_report
from benchmarks.grid_runner import Store
from starft_hf.demo.experiment import Setting
from starft_hf.weights.repair.candidates import candidates
from starft_hf.weights.repair.embedded import Embedded


def test_the_page_is_that_of_the_stored_runs():
    store = Store(repair.RESULTS)
    assert (repair.FOLDER / "REPAIR.md").read_text(encoding="utf-8") == repair_report.page(store)


def test_every_column_says_of_how_many_runs_it_is():
    """So that a grid that was broken off has a page of what is there."""
    stored = repair_report.entries(Store(repair.RESULTS))
    (first,) = (
        entry
        for entry in stored
        if entry["correlation"] == 1.0 and entry["run"] == ("seed-0", 0) and entry["classes"] == 6
    )
    other = {**first, "run": ("seed-1", 1)}
    assert repair_report.summary([first, other, {**first, "correlation": 0.5}])[0] == (
        "| Worst group / average, % | 0.5 (1) | 1 (2) |"
    )


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


@pytest.mark.slow
def test_a_cell_is_trained_repaired_and_scored(tmp_path, monkeypatch):
    """So that the benchmark, which takes hours, does not break unnoticed."""
    for name, value in {"Setting": partial(Setting, steps=2), "TEST_SIZE": 48, "SIZES": (24,), "LARGEST": 48}.items():
        monkeypatch.setattr(repair, name, value)
    monkeypatch.setattr(repair, "candidates", lambda data: candidates(data)[:8])
    found = repair.run_cell(repair.Cell(2, 0.95, "seed-0", 0), tmp_path)
    assert set(found) == {"FLYP", "kl"}
    for own in found.values():
        assert {"none", "zero-shot", "balanced 24", "as trained"} <= set(own)
        assert 0 <= own["balanced 24"]["chosen"]["worst"] <= own["balanced 24"]["chosen"]["average"] <= 1
