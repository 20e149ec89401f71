"""The page in a real browser: `make test-browser`. Needs a Chromium, such as Debian's package of that name."""

import pytest
from PIL import Image, ImageChops

from starft_hf.report import RobustnessReport, Run
from tests.support.report_runs import all_kinds, mistakes, result
from tests.support.tiny import make_dataset


pytestmark = pytest.mark.browser

PHONE, DESKTOP, PAPER = 390, 1280, 690
KINDS = ["overview", "groups", "reliability", "mistakes", "training", "wise-ft"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    images = dict(enumerate(make_dataset()["image"]))
    report = RobustnessReport(all_kinds(), title="Robustness of four models", thumbnails={"birds": images})
    return report.save(tmp_path_factory.mktemp("report"))


@pytest.fixture
def opened(browser, page_file):
    """Opens a report at a width in pixels; what it asked for and complained about is in `requests` and `problems`."""
    pages = []

    def open_at(width, scheme="light", file=page_file):
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.requests, page.problems = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("requestfailed", lambda request: page.problems.append(request.url))
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield open_at
    for page in pages:
        page.close()


def boxes(page, selector):
    found = page.locator(selector)
    return [found.nth(index).bounding_box() for index in range(found.count())]


def assert_fits(page):
    wide, there = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= there


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_tables_and_figures_are_seen(opened, page_file, width, scheme, tmp_path):
    page = opened(width, scheme)
    assert page.locator("h1").inner_text() == "Robustness of four models"
    assert page.locator("table").count() == 2
    assert page.locator("table.summary tbody tr").count() == 4
    assert page.locator("table.summary thead th").count() == 8
    for kind in KINDS:
        assert page.locator(f"figure[data-figure={kind}]").count() >= 1
    for box in boxes(page, "figure svg"):
        assert box["width"] > 280
        assert box["height"] > 120
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    loaded = page.locator("img").evaluate_all("found => found.map(image => image.complete && image.naturalWidth > 0)")
    assert loaded == [True] * 12
    assert_fits(page)
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith("data:")] == [page_file.as_uri()]

    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == width
        corner = shot.convert("L").getpixel((2, 2))
        assert (corner > 200) if scheme == "light" else (corner < 60)


def test_a_wide_table_scrolls_in_its_own_box_on_a_phone(opened):
    page = opened(PHONE)
    box = page.locator(".scroll").first
    inner, outer = box.evaluate("element => [element.scrollWidth, element.clientWidth]")
    assert inner > outer
    name = page.locator("table.summary tbody th").first
    before = name.bounding_box()
    box.evaluate("element => element.scrollLeft = 200")
    # The names stay in view beside whatever column is looked at.
    assert name.bounding_box() == before
    assert_fits(page)


def test_text_in_figures_can_be_read_on_a_phone(opened):
    page = opened(PHONE)
    heights = page.locator("figure svg text").evaluate_all(
        """found => found.map(text => {
            const matrix = text.getScreenCTM();
            return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.c, matrix.d);
        })"""
    )
    assert len(heights) > 50
    assert min(heights) >= 8.5


def test_figures_are_drawn_in_the_colors_of_the_scheme(opened, tmp_path):
    for scheme in ("light", "dark"):
        opened(PHONE, scheme).locator("figure svg").first.screenshot(path=tmp_path / f"{scheme}.png")
    with Image.open(tmp_path / "light.png") as light, Image.open(tmp_path / "dark.png") as dark:
        assert light.size == dark.size
        assert light.convert("L").getextrema()[1] == 255
        assert dark.convert("L").getpixel((2, 2)) < 60
        # Text is dark on light in one and light on dark in the other.
        assert dark.convert("L").getextrema()[1] > 200
        assert ImageChops.difference(light.convert("L"), dark.convert("L")).getbbox() is not None


def test_nothing_is_cut_off_in_print(opened):
    page = opened(PAPER, "dark")
    page.emulate_media(media="print")
    for inner, outer in page.locator(".scroll").evaluate_all(
        "found => found.map(box => [box.scrollWidth, box.clientWidth])"
    ):
        assert inner <= outer
    assert_fits(page)
    kept = page.locator("figure").evaluate_all("found => found.map(one => getComputedStyle(one).breakInside)")
    assert set(kept) == {"avoid"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_names_run_no_script_and_break_no_layout(opened, tmp_path):
    name = "<script>document.title='run'</script><img src=x onerror=alert(1)>" + "W" * 80
    results = {name: result(0.8, 0.6, groups=(name, "right"), mistakes=mistakes(3, name, name)), "b": result(0.8, 0.6)}
    report = RobustnessReport([Run("zero-shot", 0, results), Run(name, 0, results)], title=name)
    page = opened(PHONE, file=report.save(tmp_path))
    assert page.title() == name
    assert page.locator("h1").inner_text() == name
    assert page.locator("script").count() == 0
    assert page.locator("img").count() == 0
    assert_fits(page)
    assert page.problems == []
