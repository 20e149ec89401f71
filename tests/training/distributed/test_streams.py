"""Shards on several processes with workers: every sample once in a pass, and a resumed run is the whole one."""

import json
from collections import Counter

import pytest

from tests.support import streamed_run
from tests.support.launch import torchrun
from tests.support.shards import write_uneven
from tests.support.streamed_run import BATCH, SIZES, STEPS, STOP


PASS = sum(SIZES) // BATCH


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 3])
def folder(request, tmp_path_factory):
    """What runs with two processes of `param` workers each gave."""
    folder = tmp_path_factory.mktemp(f"streams{request.param}")
    for kind in ("webdataset", "parquet"):
        (folder / kind).mkdir()
        write_uneven(folder / kind, kind, SIZES)
    done = torchrun(2, streamed_run.__file__, folder, request.param)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_every_sample_once_in_a_pass_and_exactly_resumed(folder, kind, tmp_path):
    ranks = [json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert all(rank["same"] for rank in ranks)
    batches = [first + second for first, second in zip(*(rank["seen"] for rank in ranks), strict=True)]
    assert len(batches) == STEPS
    passes = [[sample for batch in batches[at : at + PASS] for sample in batch] for at in (0, PASS)]
    assert [set(Counter(each).values()) for each in passes] == [{1}, {1}]
    assert set(passes[0]) == set(passes[1])
    assert len(passes[0]) == sum(SIZES)
    assert passes[0] != passes[1]
    assert [rank["rest"] for rank in ranks] == [rank["seen"][STOP:] for rank in ranks]
    # One process without workers takes the same batches.
    alone = streamed_run.trained(tmp_path, streamed_run.shards(folder / kind, kind), 0)
    assert alone[1] == batches
    assert [step["loss"] for step in alone[0].state.log_history[:-1]] == pytest.approx(ranks[0]["losses"], abs=1e-9)
