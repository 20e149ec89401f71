"""Round trips over HTTP, with the client that everybody uses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import publish
from tests.support.hub_server import TOKEN, serve


ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub():
    with serve() as (hub, address):
        hub.address = address
        yield hub


def run(hub, folder, scenario):
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment |= {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, publish.__file__, scenario, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.slow
def test_every_kind_of_model_is_published_and_used_at_once(hub, tmp_path):
    run(hub, tmp_path, "kinds")
    assert hub.private == {"lab/owls", "lab/merged"}
    # At the saves while training and at its end.
    assert hub.requests["POST /api/models/lab/owls/commit/main"] >= 2


@pytest.mark.slow
def test_branches_tags_and_what_people_write_into_cards(hub, tmp_path):
    run(hub, tmp_path, "branches")
    assert set(hub.repos["lab/run"]) == {"main", "first", "second"}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["edits", "checkpoints", "sources"])
def test_of_what_is_on_the_hub(hub, tmp_path, scenario):
    run(hub, tmp_path, scenario)


@pytest.mark.slow
def test_training_does_not_end_because_a_push_fails(hub, tmp_path):
    hub.failures = {
        "flaky/no-commit/commit": [500, 429, 503] * 30,
        "flaky/no-preupload/preupload": [429, 500] * 60,
        "flaky/no-token/commit": [401] * 30,
        "flaky/no-right/commit": [403] * 30,
        "flaky/no-parent/commit": [409] * 30,
        # What people may have written there is not known, so nothing is written over it.
        "flaky/no-card/resolve": [500] * 90,
        # A connection that breaks in the middle of an upload.
        "PUT /objects/": ["cut"] * 200,
    }
    run(hub, tmp_path, "failures")
    assert not any("model.safetensors" in files for repo in hub.repos.values() for files in repo.values())
    hub.failures.clear()
    run(hub, tmp_path, "recovered")


@pytest.mark.slow
def test_a_hub_that_does_not_answer_at_first_is_tried_again(hub, tmp_path):
    hub.failures = {"repos/create": [500]}
    run(hub, tmp_path, "late")


@pytest.mark.slow
def test_missing_write_access_raises_before_training(hub, tmp_path):
    hub.read_only = {"lab/locked"}
    run(hub, tmp_path, "refused")
    assert not hub.repos
