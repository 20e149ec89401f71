"""The Python of guides runs as it stands; only what needs the network is replaced by something tiny."""

import re
from pathlib import Path

import datasets
import pytest
from datasets import DatasetDict

from tests.support.tiny import make_dataset


DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["sampling.md", "trackers.md"])
def test_the_python_of_a_guide_runs(page, spelling_clip, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    rows = make_dataset(16, class_names=["landbird", "waterbird"]).rename_column("group", "place")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: DatasetDict(train=rows, test=rows))
    monkeypatch.chdir(tmp_path)
    code = code.replace("openai/clip-vit-base-patch16", str(spelling_clip)).replace('"trackio"', '"none"')
    code = code.replace("StarFTConfig(\n", "StarFTConfig(\n        max_steps=1,\n")
    found = {}
    exec(compile(code, page, "exec"), found)
    assert found["trainer"].state.global_step == 1
