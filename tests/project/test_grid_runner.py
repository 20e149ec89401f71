"""The loop that runs the grids of the benchmarks."""

import json
from dataclasses import asdict

import pytest

from benchmarks.grid_runner import Store, made_once, run_all
from benchmarks.repair import Cell


CELLS = [Cell(classes, 0.95, "seed-0", 0) for classes in (6, 2, 8)]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_grid_resumes_and_runs_every_cell_once(processes, tmp_path):
    store = Store(tmp_path / "cells.json")
    run_all(CELLS[1:2], asdict, store, what="some")
    # Another process has added to the same file since.
    Store(store.path).add(CELLS[2], {"others": True})
    store = Store(store.path)
    run_all([*CELLS, CELLS[0]], asdict, store, what="all", processes=processes)
    kept = json.loads(store.path.read_text(encoding="utf-8"))
    assert kept == {CELLS[0].key: asdict(CELLS[0]), CELLS[1].key: asdict(CELLS[1]), CELLS[2].key: {"others": True}}
    assert CELLS[0].key == "6 | 0.95 | seed-0 | 0"


def test_a_grid_is_limited_to_some_cells_and_minutes(tmp_path):
    store = Store(tmp_path / "cells.json")
    run_all(CELLS, asdict, store, what="none", minutes=0)
    assert not any(cell in store for cell in CELLS)
    run_all(CELLS, asdict, store, what="some", match=r"^[28] ")
    assert [cell in store for cell in CELLS] == [False, True, True]


def test_a_folder_is_made_once_and_never_in_part(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "file").write_text("x")
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "work" / "model", make)
    for _ in range(2):
        assert (made_once(tmp_path / "work" / "model", make) / "file").read_text() == "x"
    assert len(made) == 2
