"""The script that a machine with a GPU runs, at toy size on the CPU, so that it works where there is one."""

import json
import shutil
import sys

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_it_runs_at_toy_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--toy", "--output", str(tmp_path)])
    assert gpu.main() == 0
    results = json.loads((tmp_path / "results-gpu.json").read_text())
    (variants,) = results["steps"].values()
    assert set(gpu.VARIANTS) <= set(variants)
    assert all(len(found["seconds"]) == gpu.SMALL.rounds for found in variants.values())
    assert set(results["fed"]) == {"by hand", "decoded", "image_cache", "evaluation"}
    page = (tmp_path / "RESULTS-GPU.md").read_text()
    assert "| full, bf16 |" in page
    assert page.count("\n| ") >= len(variants) + 3


def test_it_stops_beginning_things_when_time_is_up():
    clock = gpu.Clock(0)
    assert not clock.allows("anything")
    assert gpu.measure_steps("toy", 2, ["full"], gpu.SMALL, clock) == {}
    assert gpu.measure_fed(gpu.SMALL, clock) == {}


def test_a_dash_where_memory_did_not_suffice():
    steps = {
        "ViT-B/16, batch 512": {
            "paper": {"seconds": None, "peak_gib": None},
            "plain": {"seconds": [4.0], "peak_gib": 3.0},
            "full": {"seconds": [2.0], "peak_gib": 3.0},
        }
    }
    page = gpu.as_markdown(
        {
            "device": "card",
            "versions": {},
            "seconds": 1,
            "tests": {"summary": "6 passed"},
            "steps": steps,
            "about_fed": "",
            "fed": {},
        }
    )
    assert "| paper | - | - | - | - | - |" in page
    assert "| full | 2.000 | 256 | 3.0 | - | 0.50 |" in page


def test_the_page_is_that_of_what_was_measured(tmp_path, monkeypatch):
    shutil.copy(gpu.FOLDER / "results-gpu.json", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", "--report", "--output", str(tmp_path)])
    assert gpu.main() == 0
    page = "RESULTS-GPU.md"
    assert (tmp_path / page).read_text() == (gpu.FOLDER / page).read_text()
