"""The code on the page about what is trained runs, on a tiny model of the same parts."""

import re
from pathlib import Path

from transformers import CLIPModel

from tests.support.tiny import TINY_CLIP, make_dataset


PAGE = Path(__file__).parents[2] / "docs" / "what_is_trained.md"


def test_the_code_of_the_page_runs(clip, processor, tmp_path, monkeypatch, capsys):
    clip.config.vision_config.num_hidden_layers = 7
    for part in (CLIPModel(clip.config), processor):
        part.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.+?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names = {"train": make_dataset()}
    exec(code.replace("openai/clip-vit-base-patch16", str(tmp_path / "model")), names)
    trained = names["trainer"].record.trained
    assert str(trained) in capsys.readouterr().out
    assert trained["frozen"] == ["vision.layers.0-5", "text"]
    rates = {part: group["learning_rate"] for group in trained["learning_rates"] for part in group["parts"]}
    assert rates == {
        **{"vision.projections": 2e-5, "logit_scale": 1e-5, "vision.output": 5e-6, "vision.layers.6": 0.75 * 5e-6},
        "vision.embeddings": 5e-6 * 0.75**8,
    }
