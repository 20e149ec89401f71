import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from starft_hf.demo.command import demo
from starft_hf.demo.experiment import METHODS, POOLS, ZERO_SHOT, Score, Setting, run_method
from starft_hf.demo.results import as_markdown, as_rows, as_sentence, as_tables
from starft_hf.demo.world import GROUP_NAMES


def score(method, seed, worst, *, interpolated=False, average=0.8):
    groups = dict(zip(GROUP_NAMES, (worst, 0.8, 0.9, 0.95), strict=True))
    return Score(method, seed, interpolated, average, worst, 0.7, groups)


def made_up_scores(star=0.70):
    scores = [score(ZERO_SHOT, 0, 0.6)]
    for method, worst in (("FLYP", 0.4), ("kl", 0.65), ("star", star)):
        for seed, change in ((0, -0.02), (1, 0.02)):
            scores += [
                score(method, seed, worst + change),
                score(method, seed, worst + change + 0.05, interpolated=True),
            ]
    return scores


def test_rows_hold_means_over_seeds_in_the_order_of_the_methods():
    rows = as_rows(made_up_scores())
    assert [(row.method, row.interpolated) for row in rows] == [
        (ZERO_SHOT, False),
        *((method, interpolated) for method in METHODS for interpolated in (False, True)),
    ]
    assert [row.worst_group for row in rows] == pytest.approx([60, 40, 45, 65, 70, 70, 75])


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal_and_show_every_figure(width):
    console = Console(file=io.StringIO(), width=width)
    for table in as_tables(as_rows(made_up_scores()), Setting(), width):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    assert "40.0 ± 2.8" in text
    assert "held-out" in text
    assert text.count("FLYP + WiSE-FT 0.5") == (1 if width > 100 else 2)


def test_markdown_has_one_line_per_row():
    lines = as_markdown(as_rows(made_up_scores()), Setting()).splitlines()
    assert len(lines) == 2 + 7
    assert lines[3].startswith("| FLYP | 80.0 ± 0.0 | 40.0 ± 2.8 |")


@pytest.mark.parametrize(("star", "said"), [(0.7, "30.0 points better"), (0.3, "10.0 points worse")])
def test_the_sentence_says_what_happened_either_way(star, said):
    sentence = as_sentence(as_rows(made_up_scores(star)), Setting())
    assert said in sentence
    assert "from 60.0% to 40.0%" in sentence


def test_runs_of_a_seed_are_repeatable_and_methods_share_the_data_order():
    setting = Setting(steps=2)
    assert run_method(setting, "star", 1) == run_method(setting, "star", 1)


def test_unknown_pool_is_refused():
    with pytest.raises(ValueError, match=r"unknown pool 'backgrounds'\. Did you mean 'background'"):
        Setting(pool="backgrounds")
    assert {"background", "unrelated", "plain"} == set(POOLS)


def test_a_short_demo_writes_its_files(tmp_path):
    console = Console(file=io.StringIO(), width=100)
    demo(Setting(steps=2), 1, tmp_path / "out", console)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plot.png", "results.json", "table.md"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["scores"]) == 1 + 2 * len(METHODS)
    assert results["setting"]["model"] == "shipped"
    assert set(results["versions"]) >= {"torch", "transformers", "starft_hf"}
    with Image.open(tmp_path / "out" / "plot.png") as plot:
        assert plot.width > 1000
        assert np.asarray(plot.convert("L")).std() > 10
    shown = console.file.getvalue()
    assert "Fine-tuning with star" in shown
    assert "points" in shown
