"""Training and evaluation on images of several classes, as a user types them; and the guide's own block."""

import json
import re
from pathlib import Path

from tests.support.multi_label import make_multi_label_dataset
from tests.support.tiny import TINY_CLIP


PAGE = Path(__file__).parents[2] / "docs" / "multi_label.md"


def write_photos(folder):
    for split, seed in (("train", 0), ("test", 1)):
        (folder / split).mkdir(parents=True)
        lines = []
        for index, row in enumerate(make_multi_label_dataset(16, seed, form="names")):
            row["image"].save(folder / split / f"{index}.png")
            place = ("land", "water")[row["group"]]
            lines.append(json.dumps({"file_name": f"{index}.png", "label": row["label"], "place": place}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))


def test_what_is_evaluated_later_is_what_was_measured_in_training(run, tmp_path):
    write_photos(tmp_path / "photos")
    arguments = ["--model", TINY_CLIP, "--dataset", "photos", "--base_loss", "multi_label", "--group_column", "place"]
    fast = ["--num_train_epochs", "1", "--use_cpu", "--learning_rate", "1e-3", "--per_device_train_batch_size", "8"]
    content = json.loads(run("train", *arguments, *fast, "--output_dir", "out", "--json"))
    tuned = content["results"]["test"]
    assert content["method"] == "kl"
    assert set(tuned["group_map"]) == {"land", "water"}
    assert "accuracy" not in json.dumps(content)
    assert not (tmp_path / "out" / "report.json").exists()
    again = json.loads(run("evaluate", "out", "photos", "--json"))
    assert {key: again[key] for key in tuned} == tuned
    shown = run("evaluate", "out", "photos")
    assert "worst class" in shown
    assert "group land" in shown
    assert "no logit_bias" in run("evaluate", TINY_CLIP, "photos", "--multi_label", code=2)
    assert "has no effect" in run("evaluate", "out", "--benchmark", "cifar10", "--multi_label", code=2)


def test_the_block_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    changes = {'"openai/clip-vit-base-patch16"': repr(str(TINY_CLIP)), 'base_loss="multi_label"': None}
    changes['base_loss="multi_label"'] = 'base_loss="multi_label", max_steps=1, use_cpu=True, report_to="none"'
    for old, new in changes.items():
        assert old in block
        block = block.replace(old, new)
    exec(compile(block, "multi_label.md", "exec"), {})
    assert "worst_group_map" in capsys.readouterr().out
