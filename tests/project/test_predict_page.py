"""What docs/predict.md shows runs, and does what it says."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from starft_hf import load
from starft_hf.cli import main
from starft_hf.models.heads import head_from_weights, save_head
from tests.support.folders import write
from tests.support.tiny import TINY_CLIP


PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
CLASSES = ["owl", "truck", "fern"]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images and a model of their classes."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", ["owl/1.png", "fern/1.png", "truck/1.png"])
    shutil.copytree(TINY_CLIP, "robust")
    head = head_from_weights(torch.randn(3, load(TINY_CLIP).model.config.projection_dim))
    save_head(head.state_dict(), CLASSES, "robust")
    return tmp_path


def test_what_the_page_shows_runs(place, capsys):
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        # No model can be downloaded here, and one process writes what several do.
        typed = line.replace("openai/clip-vit-base-patch16", str(TINY_CLIP)).replace(" --processes 8 --workers 4", "")
        assert main([*shlex.split(typed)[1:], "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["skipped"], sorted(found["classes"])) == (0, sorted(CLASSES))
        assert ("accuracy" in found) == ("photos/owl" not in line)
    shown = blocks("text")[0].splitlines()[0]
    assert (place / "predictions.csv").read_text().splitlines()[0] == shown
    assert pd.read_csv("predictions.csv")["file"].tolist() == ["fern/1.png", "owl/1.png", "truck/1.png"]
    (code,) = blocks("python")
    namespace = {}
    exec(code, namespace)
    read = pd.read_parquet("table.parquet")
    assert read["top_2"].tolist() == namespace["table"]["top_2"][:]
    assert read["label"].tolist() == pd.read_csv("predictions.csv")["label"].tolist()
