"""SIGKILL at any moment, then the same command: the same weights, average, losses and evaluations."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.support import killing
from tests.support.launch import ROOT
from tests.support.resumed_run import MOMENTS
from tests.support.scenarios import environment


def killed(folder, *arguments, timeout=600):
    done = subprocess.run(
        [sys.executable, killing.__file__, str(folder), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])["results"]


@pytest.mark.slow
def test_a_run_killed_at_fixed_moments_comes_out_the_same(tmp_path):
    results = killed(tmp_path)
    assert [result["moment"] for result in results] == list(MOMENTS)
    for result in results:
        assert (result["first"], result["second"], result["same"]) == (-9, 0, True), result
    left = {result["moment"]: result["left"] for result in results}
    assert left["building the cache"]["cached"] == []
    assert left["saving"]["half written"] == ["checkpoint-4"]
    assert left["rotating"]["checkpoints"] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert [result["skipped"] for result in results] == [0, 0, 1, 0, 0]


@pytest.mark.soak
def test_a_run_killed_at_50_random_moments_comes_out_the_same(tmp_path):
    results = killed(tmp_path, 50, timeout=3600)
    print(Counter(str(result["left"]) for result in results))
    assert len(results) == 50
    assert [result for result in results if not result["same"]] == []
