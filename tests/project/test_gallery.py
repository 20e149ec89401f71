"""`make gallery` draws everything that people see."""

from pathlib import Path

import pytest

from tests.gallery.sheets import SHEETS, plots
from tests.support.figures import functions_that_draw


def test_the_gallery_has_every_figure(tmp_path):
    plots(tmp_path, None)
    assert {path.stem for path in tmp_path.iterdir()} == functions_that_draw()
    assert {"report", "cards", "discovery", "notebooks", "space", "docs"} <= set(SHEETS)
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text(encoding="utf-8")
    assert "/gallery/" in ignored.split()


@pytest.mark.browser
def test_the_gallery_is_written(browser, tmp_path):
    SHEETS["docs"](tmp_path, browser)
    assert len(list(tmp_path.glob("*.png"))) > 15
