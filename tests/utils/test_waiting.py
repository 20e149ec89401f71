"""A Hub that accepts connections and never answers holds nothing up for long, and no signal."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from starft_hf.utils.waiting import NoAnswerError, answered, upload_limit
from tests.support.scenarios import environment


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


@pytest.fixture
def silent_hub():
    """The address of a Hub that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        accepting = threading.Thread(target=lambda: held.extend(iter(lambda: server.accept(), None)), daemon=True)
        accepting.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_answers_errors_and_limits():
    assert answered(lambda: 3, "a number") == 3
    with pytest.raises(KeyError):
        answered(lambda: {}["no"], "a key")
    start = time.monotonic()
    with pytest.raises(NoAnswerError, match="no answer for 0 seconds from the moon"):
        answered(threading.Event().wait, "the moon", timeout=0.3)
    assert time.monotonic() - start < 5
    assert upload_limit(10**9, 30) == 30 + 10**4


SCRIPT = """
import huggingface_hub.constants  # before the tests, which are offline
import sys
from pathlib import Path
from tests.support.resumed_run import make_trainer
folder, timeout = Path(sys.argv[1]), float(sys.argv[2])
trainer = make_trainer(folder, max_steps=2, push_to_hub=True, hub_model_id="lab/owls", hub_timeout=timeout)
trainer.train()
print("trained", flush=True)
"""


@pytest.fixture
def start(silent_hub, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    started = []

    def run(timeout):
        variables = {name: value for name, value in environment().items() if "OFFLINE" not in name}
        variables |= {
            "HF_ENDPOINT": silent_hub,
            "HF_TOKEN": "hf_loopback",
            "PYTHONPATH": ROOT,
            "HF_HOME": str(tmp_path),
        }
        command = [sys.executable, str(script), str(tmp_path / "run"), str(timeout)]
        process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_training_neither_waits_for_it_nor_is_lost(start, tmp_path):
    out, errors = start(1).communicate(timeout=120)
    assert out.split()[-1] == "trained", errors[-3000:]
    assert "no answer for 1 seconds from the Hub, for the repository lab/owls" in errors
    assert "publish it with: starft push" in errors
    assert (tmp_path / "run" / "output" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, -signal.SIGINT)])
def test_signals_end_the_wait(start, tmp_path, number, code):
    """With the model on the disk."""
    process = start(20)
    file = tmp_path / "run" / "output" / "checkpoint-2" / "starft_checkpoint.json"
    while not file.exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(number)
    process.wait(timeout=60)
    assert time.monotonic() - sent < 15
    assert process.returncode == code, process.stderr.read()[-3000:]
    assert file.exists()
    assert "offline" not in process.stderr.read()
