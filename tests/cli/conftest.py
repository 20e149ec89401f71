"""A command line in an empty folder."""

import pytest

from starft_hf.cli import main


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command, checks its exit code, and gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        found = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert found == code, shown.err
        return shown.out if code == 0 else shown.err

    return run
