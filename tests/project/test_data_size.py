"""Learning rate and steps by size of data: what is chosen, and that the pages say what the stored runs say."""

import pytest

from benchmarks import data_size, data_size_report, evidence
from benchmarks.data_size import Cell, cells, run_cell
from benchmarks.data_size_report import Measured
from benchmarks.grid_runner import Store


def figures(validation, test=0.5):
    splits = {"validation": validation, "test": test}
    return {split: {"worst": worst, "average": worst + 0.1} for split, worst in splits.items()}


@pytest.fixture
def store(tmp_path):
    """One replicate in which a rate of 1/16 is best, 1/64 is level with it, and more is worse than zero-shot."""
    found = Store(tmp_path / "data_size.json")
    validation = {1 / 256: 0.60, 1 / 64: 0.68, 1 / 16: 0.70, 1 / 4: 0.57}
    found.add(Cell("drawn", 0, "zero-shot", 0.0, 0, 0), figures(0.6))
    for rate, worst in validation.items():
        for method in data_size.METHODS:
            found.add(Cell("drawn", 200, method, rate, 50, 0), figures(worst, worst - 0.05))
    # Without the other method it does not count.
    found.add(Cell("drawn", 200, "FLYP", 1.0, 50, 0), figures(0.9))
    return found


def test_settings_are_chosen_on_validation_and_shown_by_their_test(store):
    defaults = Measured(store, "drawn", 200, "defaults")
    assert defaults.replicates == [0]
    assert defaults.best("worst") == (1 / 16, 50)
    # 70% of 90 images.
    assert defaults.standard_error("worst") == pytest.approx(4.83, abs=0.01)
    assert defaults.level("worst") == [(1 / 64, 50), (1 / 16, 50)]
    assert defaults.largest_safe_rate(50) == 1 / 16
    assert defaults.largest_safe_rate(200) is None
    page = data_size_report.page(store)
    assert "| drawn, 200, defaults | 50.0 / 60.0 | **1/16 x, 50** (8) | 65.0 / 75.0 | 4.8 | 1/64 x, 50 |" in page
    assert "| drawn, 200 | 1/16 x (+15.0) | not run | not run |" in page


def test_a_replicate_counts_if_it_has_what_the_first_one_has(store):
    for cell in list(cells(2)):
        if cell.replicate == 1 and cell.size in (0, 200) and cell.steps in (0, 50) and cell.world == "drawn":
            store.add(cell, figures(0.5))
    assert Measured(store, "drawn", 200, "defaults").replicates == [0, 1]
    del store.cells[Cell("drawn", 200, "defaults", 1.0, 50, 1).key]
    assert Measured(store, "drawn", 200, "defaults").replicates == [0, 1]
    del store.cells[Cell("drawn", 200, "defaults", 1 / 4, 50, 1).key]
    assert Measured(store, "drawn", 200, "defaults").replicates == [0]


def test_a_cell_of_the_drawn_world_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(data_size, "SCORED", {"validation": 24, "test": 24})
    start = run_cell(Cell("drawn", 0, "zero-shot", 0.0, 0, 0), tmp_path)
    tuned = run_cell(Cell("drawn", 24, "defaults", 1.0, 2, 0), tmp_path)
    assert 0 <= start["test"]["worst"] <= start["test"]["average"] <= 1
    assert tuned["validation"] != start["validation"] or tuned["test"] != start["test"]


def test_the_pages_are_those_of_the_stored_runs():
    store = Store(data_size.RESULTS)
    assert data_size_report.PAGE.read_text(encoding="utf-8") == data_size_report.page(store)
    assert data_size_report.GUIDE.read_text(encoding="utf-8") == evidence.filled(data_size_report.NOTES)
