import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from starft_hf import RobustnessReport
from starft_hf.demo import world
from starft_hf.demo.command import demo
from starft_hf.demo.experiment import HELD_OUT, METHODS, POOLS, Setting, run_experiment
from starft_hf.demo.results import as_markdown, as_sentence, as_tables, section_of
from starft_hf.training.methods import ZERO_SHOT
from tests.support.report_runs import demo_runs


def made_up_report(star=0.70):
    return RobustnessReport(demo_runs(star))


def test_rows_hold_means_over_seeds_in_the_order_of_the_methods():
    rows = section_of(made_up_report(), "test").rows
    assert [(row.method, row.interpolated) for row in rows] == [
        (ZERO_SHOT, None),
        *((method, alpha) for method in METHODS for alpha in (None, 0.5)),
    ]
    assert [100 * row.worst_group.mean for row in rows] == pytest.approx([60, 40, 45, 65, 70, 70, 75])
    assert [100 * row.average.mean for row in section_of(made_up_report(), HELD_OUT).rows] == pytest.approx([70] * 7)


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal_and_show_every_figure(width):
    console = Console(file=io.StringIO(), width=width)
    for table in as_tables(made_up_report(), Setting(), width):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    assert "40.0 ± 2.8" in text
    assert "held-out" in text
    assert text.count("FLYP + WiSE-FT 0.5") == (1 if width > 100 else 2)


def test_markdown_has_one_line_per_row():
    lines = as_markdown(made_up_report(), Setting()).splitlines()
    assert len(lines) == 2 + 7
    assert lines[3].startswith("| FLYP | 80.0 ± 0.0 | 40.0 ± 2.8 |")


@pytest.mark.parametrize(("star", "said"), [(0.7, "30.0 points better"), (0.3, "10.0 points worse")])
def test_the_sentence_says_what_happened_either_way(star, said):
    sentence = as_sentence(made_up_report(star), Setting())
    assert said in sentence
    assert "from 60.0% to 40.0%" in sentence


@pytest.mark.slow
def test_runs_are_repeatable_and_side_by_side_they_are_what_they_are_one_by_one():
    setting = Setting(steps=2)
    alone = run_experiment(setting, 1, processes=1)
    together = run_experiment(setting, 1, processes=2)
    for one, other in zip(alone.runs, together.runs, strict=True):
        assert (one.method, one.seed, one.interpolated) == (other.method, other.seed, other.interpolated)
        # With another number of threads, sums are rounded differently.
        assert one.results["test"].loss == pytest.approx(other.results["test"].loss, rel=1e-4)


def test_unknown_pool_is_refused():
    with pytest.raises(ValueError, match=r"unknown pool 'backgrounds'\. Did you mean 'background'"):
        Setting(pool="backgrounds")
    assert {"background", "unrelated", "plain"} == set(POOLS)


@pytest.mark.slow
def test_a_short_demo_writes_its_files(tmp_path, monkeypatch):
    # Rows do not matter here, but evaluating them three times per run takes time.
    for split in ("test", "held_out"):
        monkeypatch.setitem(world._SPLITS, split, (world._SPLITS[split][0], 96))
    console = Console(file=io.StringIO(), width=100)
    demo(Setting(steps=2), 1, tmp_path / "out", console)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    plots = ["plot.png", "plot_dark.png"]
    assert written == [*plots, "report.html", "report.json", "report.md", "setting.json", "table.md"]
    report = RobustnessReport.from_json((tmp_path / "out" / "report.json").read_text())
    assert len(report.runs) == 1 + 2 * len(METHODS)
    assert [point.alpha for point in report.runs[1].curve] == [0, 0.5, 1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    setting = json.loads((tmp_path / "out" / "setting.json").read_text())
    assert setting["setting"]["model"] == "shipped"
    assert set(setting["versions"]) >= {"torch", "transformers", "starft_hf"}
    for name in plots:
        with Image.open(tmp_path / "out" / name) as plot:
            assert plot.width > 1000
            assert np.asarray(plot.convert("L")).std() > 10
    shown = console.file.getvalue()
    assert "points" in shown
