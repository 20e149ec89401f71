"""What the tests of the project's pages and benchmarks share."""

import pytest

from benchmarks import grid_runner


def do_nothing() -> None:
    """In place of what a worker does first; a function that can be pickled, for grids in several processes."""


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """A grid in this process leaves its progress bars, threads and log level as they are."""
    monkeypatch.setattr(grid_runner, "start_worker", do_nothing)
