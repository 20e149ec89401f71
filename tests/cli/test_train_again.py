"""`starft train --resume`, repeated after it was interrupted."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file

from starft_hf.cli import main
from starft_hf.training.checkpointing.checkpointer import Checkpointer
from starft_hf.training.checkpointing.files import last_valid_checkpoint
from starft_hf.utils.hashing import tensors_digest
from tests.support.launch import ROOT
from tests.support.scenarios import environment
from tests.support.tiny import TINY_CLIP, write_folder


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command without its output folder."""
    images = tmp_path_factory.mktemp("images")
    for split, seed in (("train", 0), ("test", 1)):
        write_folder(images, size=16, seed=seed, split=split)
    settings = {
        "model": TINY_CLIP,
        "dataset": images,
        "group_column": "place",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 5,
        "learning_rate": 1e-3,
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    return ["train", *flags, "--use_cpu", "--resume"]


def key_of(folder):
    return tensors_digest(load_file(folder / "model.safetensors"))


def test_it_starts_resumes_and_refuses_another_run(command, tmp_path, capsys):
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    key = key_of(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    assert key_of(tmp_path / "out") == key
    capsys.readouterr()
    assert main([*command, "--output_dir", str(tmp_path / "out"), "--regularizer", "kl"]) == 2
    error = capsys.readouterr().err
    assert "regularizer was 'star' and is 'kl'" in error
    assert "set --ignore_mismatched_settings to resume" in error


def test_where_a_run_starts_is_warned_of_once(command, tmp_path, monkeypatch, caplog):
    def end(*args):
        raise ValueError("it is about to train")

    # The folder is looked at before the model is evaluated, and again by `train`.
    monkeypatch.setattr(Checkpointer, "remove_flawed", end)
    for message in ("There is no checkpoint to resume from in", "is skipped"):
        caplog.clear()
        assert main([*command, "--output_dir", str(tmp_path / "out")]) != 0
        assert caplog.text.count(message) == 1, caplog.text
        (tmp_path / "out" / "checkpoint-5").mkdir(parents=True, exist_ok=True)


def start(arguments, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "starft_hf", *arguments, "--output_dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_processes_end_when_the_one_that_launched_them_is_killed(command, tmp_path):
    """With a checkpoint, so that nothing trains and writes on."""
    arguments = [*command, "--processes", "2", "--num_train_epochs", "1000", "--per_device_train_batch_size", "2"]
    process = start(arguments, tmp_path / "killed")
    while last_valid_checkpoint(tmp_path / "killed")[0] is None and process.poll() is None:
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 3
    process.kill()
    assert psutil.wait_procs(started, timeout=120)[1] == []
    last = last_valid_checkpoint(tmp_path / "killed")
    assert last[0] is not None
    assert last[1] == []
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_with_75_and_the_same_command_gives_the_same(command, tmp_path, processes):
    """With several processes, the signal goes to the one that was typed in."""
    arguments = [*command, "--processes", str(processes), "--num_train_epochs", "12", "--save_total_limit", "2"]
    arguments += ["--per_device_train_batch_size", str(4 // processes)]
    process = start(arguments, tmp_path / "cut")
    while last_valid_checkpoint(tmp_path / "cut")[0] is None and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    shown, _ = process.communicate(timeout=200)
    assert process.returncode == 75, shown[-3000:]
    assert "stopped by SIGTERM; the checkpoint" in shown
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    for name in ("cut", "whole"):
        process = start(arguments, tmp_path / name)
        shown, _ = process.communicate(timeout=300)
        assert process.returncode == 0, shown[-3000:]
    assert key_of(tmp_path / "cut") == key_of(tmp_path / "whole")
