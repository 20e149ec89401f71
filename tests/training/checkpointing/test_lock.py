"""One run at a time writes into an output folder, and the lock of a run that has ended is taken over."""

import json
import os
import subprocess
import sys
import threading

import psutil
import pytest

from starft_hf import CheckpointError
from starft_hf.training.checkpointing import lock
from starft_hf.training.checkpointing.lock import LOCK_FILE, exclusive
from tests.support.resumed_run import make_trainer


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 0.6)


def held_by(folder, **changes):
    content = {"host": "elsewhere", "process": 1, "started": 0.0, "beats": 0} | changes
    (folder / LOCK_FILE).write_text(json.dumps(content))


def test_a_folder_is_held_once_and_let_go(tmp_path):
    with exclusive(tmp_path / "new"):
        second = exclusive(tmp_path / "new")
        with pytest.raises(CheckpointError, match=rf"another run: process {os.getpid()} on .*, started 20"), second:
            pass
        assert (tmp_path / "new" / LOCK_FILE).is_file()
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(KeyError), exclusive(tmp_path):
        raise KeyError
    with exclusive(tmp_path):
        pass


def test_a_process_that_was_killed_holds_nothing(tmp_path, caplog):
    """Nor one of the same number that started later."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = psutil.Process(child.pid).create_time()
    held_by(tmp_path, host=lock.socket.gethostname(), process=child.pid, started=started)
    with pytest.raises(CheckpointError, match=f"process {child.pid}"), exclusive(tmp_path):
        pass
    held_by(tmp_path, host=lock.socket.gethostname(), process=child.pid, started=started - 5)
    with exclusive(tmp_path):
        assert "takes over" in caplog.text
    held_by(tmp_path, host=lock.socket.gethostname(), process=child.pid, started=started)
    child.kill()
    # It stays a zombie until its parent asks for it, as those of a scheduler may.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with exclusive(tmp_path):
        child.wait()


def test_the_lock_of_another_machine_is_taken_over_once_it_is_not_renewed(tmp_path, quick, caplog):
    held_by(tmp_path)
    with exclusive(tmp_path):
        assert "waiting" in caplog.text
    held_by(tmp_path)
    renewing = threading.Timer(0.2, held_by, [tmp_path], {"beats": 1})
    renewing.start()
    with pytest.raises(CheckpointError, match="process 1 on elsewhere"), exclusive(tmp_path):
        pass
    renewing.join()


def test_a_lock_is_renewed_and_one_that_was_taken_over_is_not(tmp_path, quick):
    beats = [0]
    with exclusive(tmp_path):
        for _ in range(100):
            beats.append(json.loads((tmp_path / LOCK_FILE).read_text())["beats"])
            if beats[-1] > 2:
                break
            threading.Event().wait(0.05)
        assert beats[-1] > 2
        held_by(tmp_path)
        threading.Event().wait(0.2)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[]", '{"host": 3, "process": 1, "started": 0}', "\xff"])
def test_a_lock_that_says_nothing_is_nobodys(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content.encode("latin-1"))
    with exclusive(tmp_path):
        pass


def test_a_run_refuses_a_folder_in_use_before_it_looks_for_checkpoints(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    with (
        exclusive(tmp_path / "output"),
        pytest.raises(CheckpointError, match="end that one, or choose another output_dir"),
    ):
        trainer.train(resume_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=True)
    assert not (tmp_path / "output" / LOCK_FILE).exists()
