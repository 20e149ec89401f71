"""The figures as PNG files, pixel by pixel: a file that exists may be solid red."""

import pytest

from starft_hf.demo.experiment import Setting
from starft_hf.demo.plot import draw_plot
from starft_hf.report import RobustnessReport
from starft_hf.utils.plotting import COLORS, DARK_COLORS, INK, PAPER, SERIES
from tests.support.figures import all_figures, functions_that_draw, pixels_of
from tests.support.report_runs import all_kinds, demo_runs


@pytest.fixture(scope="module")
def figures():
    return all_figures()


def assert_drawn(png, series):
    found = pixels_of(png)
    assert found.most_common(1)[0][0] == PAPER
    assert found[INK] > 100
    assert [color for color in series if found[color] < 100] == []


def test_every_function_that_draws_is_looked_at(figures):
    assert set(figures) == functions_that_draw()
    assert len(figures) == 9


@pytest.mark.parametrize("name", sorted(functions_that_draw()))
def test_every_series_has_a_color_of_its_own_and_of_the_page(figures, name):
    assert_drawn(*figures[name])


def test_a_dark_figure_has_the_same_series_and_nothing_light_left():
    found = pixels_of(draw_plot(RobustnessReport(demo_runs()), Setting(), dark=True))
    assert found.most_common(1)[0][0] == DARK_COLORS["paper"]
    assert found[DARK_COLORS["ink"]] > 100
    assert all(found[DARK_COLORS[f"series-{index}"]] > 100 for index in range(4))
    assert [color for color in (PAPER, *SERIES[:4]) if found[color] > 20] == []


def test_saved_figures_have_the_colors_of_the_page_whatever_the_users_own_are(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    report = RobustnessReport(all_kinds())
    with matplotlib.rc_context({"axes.facecolor": "red", "savefig.facecolor": "red", "savefig.transparent": True}):
        saved = report.save_figures(tmp_path)
    assert [path.name for _, path in saved] == ["overview-0.png", "groups-0.png"]
    for _, path in saved:
        assert_drawn(path.read_bytes(), SERIES[:3])
    page = report.as_html()
    assert all(f"  --{name}: {color};" in page for name, color in COLORS.items())
