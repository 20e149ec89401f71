"""K processes keep the average that one does, and continue that of another number of processes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support import averages
from tests.support.launch import torchrun
from tests.support.runs import FSDP


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    averages.run(folder)
    return folder


def assert_same(left, right, files=("averaged.safetensors", "output/checkpoint-6/ema.safetensors")):
    for file in files:
        expected, found = load_file(left / file), load_file(right / file)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=f"{file} {name}")
    losses = [json.loads((folder / "loss.json").read_text()) for folder in (left, right)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, FSDP], ids=["DDP", "FSDP 2"])
def test_the_average_is_that_of_one_process_and_resumes(settings, alone, tmp_path):
    done = torchrun(2, averages.__file__, tmp_path / "two", json.dumps(settings))
    assert done.returncode == 0, done.stderr[-6000:]
    assert_same(alone, tmp_path / "two")
    resume = str(tmp_path / "two" / "output" / "checkpoint-4")
    done = torchrun(2, averages.__file__, tmp_path / "resumed", json.dumps({**settings, "resume": resume}))
    assert done.returncode == 0, done.stderr[-6000:]
    assert_same(alone, tmp_path / "resumed")
    if not settings:
        averages.run(tmp_path / "one", resume=resume)
        assert_same(alone, tmp_path / "one")
