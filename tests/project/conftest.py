"""What the tests of the project's pages and benchmarks share."""

import pytest

from benchmarks import grid_runner


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """A grid in this process leaves its progress bars, threads and log level as they are."""
    monkeypatch.setattr(grid_runner, "start_worker", lambda: None)
