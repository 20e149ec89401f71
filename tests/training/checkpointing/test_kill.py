"""SIGKILL or SIGTERM at any moment, then the same command: the same weights, losses, evaluations and files."""

import json
import subprocess
import sys

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
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_killed_at_fixed_moments_comes_out_the_same(tmp_path):
    results = {result["moment"]: result for result in killed(tmp_path)}
    assert list(results) == list(MOMENTS)
    for result in results.values():
        assert (result["first"], result["code"], result["different"]) == (-9, 0, []), result
    left = {moment: result["left"] for moment, result in results.items()}
    assert left["building the cache"]["cached"] == ["texts"]
    assert left["saving"]["half written"] == left["before the mark is removed"]["half written"] == ["checkpoint-4"]
    assert left["rotating"]["checkpoints"] == ["checkpoint-4", "checkpoint-6"]
    skipped = {moment for moment, result in results.items() if result["skipped"]}
    assert skipped == {"saving", "before the mark is removed"}


@pytest.mark.soak
def test_50_runs_of_mixed_settings_killed_at_any_moments_come_out_the_same(tmp_path):
    results = killed(tmp_path, 50, timeout=3600)
    print(f"\n{sum(result['same'] for result in results)} of {len(results)} runs came out the same")
    assert len(results) == 50
    assert [result for result in results if not result["same"]] == []
