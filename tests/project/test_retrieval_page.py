"""The code of the guide to retrieval runs."""

import re
from pathlib import Path

from tests.support.tiny import TINY_CLIP, make_dataset, write_captions


PAGE = Path(__file__).parents[2] / "docs" / "retrieval.md"
QUICK = 'max_steps=1, per_device_train_batch_size=8, use_cpu=True, report_to="none", save_strategy="no", '


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_captions(tmp_path / "flickr", 8, split="train")
    write_captions(tmp_path / "flickr", 6, seed=1, split="test")
    sets = {"train": make_dataset(), "validation": make_dataset(8)}
    monkeypatch.setattr("datasets.load_dataset", lambda name: sets)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(blocks).replace("openai/clip-vit-base-patch16", str(TINY_CLIP))
    exec(code.replace("StarFTConfig(", f"StarFTConfig({QUICK}"), {})
    shown = capsys.readouterr().out
    assert "'mean_recall': " in shown
