import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from starft_hf.report import CurvePoint, RobustnessReport, Run, TrainingPoint
from starft_hf.report.rows import entries_of
from starft_hf.report.series import pooled_bins, training_line, wise_ft_curve
from tests.support.report_runs import all_kinds, mistakes, result, run


EVIL = "_<script>alert(1)</script> & $\\frac{1}{2}$ \x1b\u202e \"quoted\" 'x'"


class Elements(HTMLParser):
    """Collects the elements of a page, and the text outside of style sheets."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def figures(page):
    return [attributes["data-figure"] for attributes in Elements(page).named("figure")]


def test_every_kind_of_figure_is_there_with_a_description():
    page = RobustnessReport(all_kinds()).as_html()
    assert figures(page) == ["overview", "groups", "reliability", *["mistakes"] * 3, "training", "wise-ft"]
    drawings = Elements(page).named("svg")
    assert len(drawings) == 5
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 20 for drawing in drawings)
    assert "StarFT: 65.0% and 82.0%" in drawings[0]["aria-label"]
    assert len(Elements(page).named("figcaption")) == 8


def test_figures_without_data_are_skipped():
    bare = Run("zero-shot", 0, {"birds": type(result(1, 1))(0.8, 0.6, {"left": 0.6}, {"left": 9}, 0.7, 0.05)})
    assert figures(RobustnessReport([bare]).as_html()) == ["overview", "groups"]


def test_the_page_says_what_the_table_says():
    text = " ".join(Elements(RobustnessReport(all_kinds(), title="Four models").as_html()).text.split())
    assert "Four models" in text
    assert "FLYP loses 20.0 points in the worst group" in text
    assert (
        "StarFT 82.0 \u00b1 2.8 65.0 \u00b1 7.1 17.0 \u00b1 4.2 5.0 \u00b1 0.0 +12.0 \u00b1 2.8 +3.0 \u00b1 7.1 2"
        in text
    )


def test_nothing_is_loaded_from_anywhere():
    report = RobustnessReport(all_kinds(), thumbnails={"birds": {0: Image.new("RGB", (50, 50))}})
    page = report.as_html()
    assert not re.search(r"https?:|//\w", re.sub(r"data:image/png;base64,[^\"]+", "", page))
    elements = Elements(page)
    assert not [tag for tag, _ in elements.found if tag in ("script", "iframe", "object", "embed")]
    for _, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "default-src 'none'" in next(
        tag["content"] for tag in elements.named("meta") if tag.get("http-equiv") == "Content-Security-Policy"
    )
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "@import" not in page


def test_names_are_shown_and_never_interpreted():
    groups = (EVIL, "right")
    log = [TrainingPoint(1, 1.0, 1.0, 1.0)]
    curve = [CurvePoint(0, 0.5, 0.5)]
    wrong = mistakes(2, label=EVIL, predicted=EVIL)
    runs = [run(EVIL, dataset=EVIL, groups=groups, log=log, curve=curve, mistakes=wrong)]
    report = RobustnessReport(runs, title=EVIL, baseline=EVIL, curve_axes=(EVIL, EVIL))
    page = report.as_html()
    assert "<script" not in page
    elements = Elements(page)
    assert elements.text.count("<script>alert(1)</script> & $\\frac{1}{2}$") > 10
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_ids_are_unique_and_references_lead_somewhere():
    results = {"birds": result(0.8, 0.6), "dogs": result(0.8, 0.6)}
    page = RobustnessReport([Run("zero-shot", 0, results), Run("StarFT", 0, results)]).as_html()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'url\(#([^)]+)\)|(?:href="#|labelledby=")([^"]+)"', page)
    assert {first or second for first, second in used} <= set(ids)
    assert 'href="#dataset-2"' in page


def test_a_page_is_made_the_same_way_every_time():
    assert RobustnessReport(all_kinds()).as_html() == RobustnessReport(all_kinds()).as_html()


def test_the_users_matplotlib_is_neither_used_nor_changed():
    matplotlib = pytest.importorskip("matplotlib")
    plain = RobustnessReport(all_kinds()).as_html()
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "red"}):
        assert RobustnessReport(all_kinds()).as_html() == plain
        assert matplotlib.rcParams["font.size"] == 30


def images_of(page):
    sources = [attributes["src"] for attributes in Elements(page).named("img")]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


def test_mistakes_come_with_few_and_small_images_without_metadata():
    photo = Image.new("RGBA", (640, 320), (200, 30, 30, 255))
    photo.info["comment"] = "taken at home"
    photo.getexif()[0x010E] = "taken at home"
    images = dict.fromkeys(range(20), photo)
    report = RobustnessReport([run("zero-shot", mistakes=mistakes(20))], thumbnails={"birds": images})
    thumbnails = images_of(report.as_html())
    assert len(thumbnails) == 12
    for thumbnail in thumbnails:
        assert thumbnail.format == "PNG"
        assert thumbnail.size == (128, 64)
        assert thumbnail.getpixel((5, 5)) == (200, 30, 30)
        assert not thumbnail.info
        assert not thumbnail.getexif()


def test_several_models_share_the_images_and_show_the_surest_mistakes():
    image = np.full((24, 24, 3), 90, np.uint8)
    thumbnails = {"birds": dict.fromkeys(range(20), image)}
    page = RobustnessReport(all_kinds(), thumbnails=thumbnails).as_html()
    assert len(images_of(page)) == 12
    described = [attributes["alt"] for attributes in Elements(page).named("img")]
    assert described[:4] == [f"sample {sample}, owl, taken for fern" for sample in range(4)]
    assert [attributes["class"] for attributes in Elements(page).named("img")] == ["coarse"] * 12


def test_a_mistake_without_an_image_is_shown_all_the_same():
    page = RobustnessReport([run("zero-shot", mistakes=mistakes(1))]).as_html()
    assert "no image" in page
    assert "99% sure" in page


def test_every_one_of_many_models_has_some_thumbnails():
    names = ["zero-shot", "CE", "FLYP", "kl", "star", "L2-SP", "CAR-FT"]
    page = RobustnessReport([run(name, mistakes=mistakes(9)) for name in names]).as_html()
    assert figures(page).count("mistakes") == len(names)
    assert page.count("no image") == 3 * len(names)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_before_anything_is_written(package, monkeypatch, tmp_path):
    report = RobustnessReport([run("zero-shot")])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed: pip install 'starft_hf\[report\]'"):
        report.save(tmp_path)
    assert not list(tmp_path.iterdir())
    assert "zero-shot" in report.as_markdown()
    assert "zero-shot" in report.as_json()


def entry(*runs):
    return entries_of(runs, "zero-shot")[0]


def test_reliability_bins_pool_the_predictions_of_all_seeds():
    base = result(0.8, 0.6)
    part = type(base.bins[0])
    runs = [
        Run("kl", seed, {"birds": type(base)(0.8, 0.6, {"left": 0.6}, {"left": 9}, 0.7, 0.05, bins=bins)})
        for seed, bins in enumerate(
            [(part(0, 0.0, 0.0), part(10, 0.6, 0.5)), (part(0, float("nan"), 0.0), part(30, 0.8, 0.9))]
        )
    ]
    bins = pooled_bins(entry(*runs), "birds")
    assert bins.count.tolist() == [0, 20]
    assert np.isnan(bins.accuracy[0])
    assert bins.confidence[1] == pytest.approx(0.75)
    assert bins.accuracy[1] == pytest.approx(0.8)


def test_a_handful_of_predictions_is_not_a_point_of_the_diagram():
    base = result(0.8, 0.6)
    part = type(base.bins[0])

    def page(*counts):
        bins = tuple(part(count, 0.5, 1.0) for count in counts)
        one = type(base)(0.8, 0.6, {"left": 0.6}, {"left": 9}, 0.7, 0.05, bins=bins)
        found = pooled_bins(entry(Run("kl", 0, {"birds": one})), "birds")
        return found.shown.tolist(), RobustnessReport([Run("kl", 0, {"birds": one})]).as_html()

    shown, text = page(0, 1, 199)
    assert shown == [False, False, True]
    assert "Points of less than 1% of the predictions are not shown." in text
    shown, text = page(0, 1, 23)
    assert shown == [False, True, True]
    assert "not shown" not in text


def logged(*logs, weight=0.0):
    """Runs with these base losses by step; `weight` is a number or the weights of every run by step."""
    weights = weight if isinstance(weight, list) else [dict.fromkeys(log, weight) for log in logs]
    return [
        run("kl", seed, log=[TrainingPoint(step, loss, 0.1, of_seed[step]) for step, loss in log.items()])
        for seed, (log, of_seed) in enumerate(zip(logs, weights, strict=True))
    ]


INTERPOLATED = "Means between the logged steps of a seed are interpolated."


@pytest.mark.parametrize(
    ("logs", "x", "y", "said"),
    [
        ([{1: 2.0, 2: 1.0, 3: 0.5}, {1: 4.0, 2: 2.0, 3: 1.5}], [1, 2, 3], [3, 1.5, 1], ()),
        # A run that ended early, and seeds that logged at different steps.
        ([{1: 2.0, 2: 1.0, 3: 0.5}, {1: 4.0, 2: 2.0}], [1, 2], [3, 1.5], ()),
        ([{1: 2.0, 2: 1.0, 3: 0.5}, {1: 4.0, 3: 2.0}], [1, 2, 3], [3, 2, 1.25], (INTERPOLATED,)),
        ([{1: 2.0, 3: 1.0}, {2: 4.0, 4: 2.0}], [2, 3], [2.75, 2], (INTERPOLATED,)),
        (
            [{1: 2.0, 2: 1.0}, {101: 4.0, 102: 2.0}],
            [],
            [],
            ("The seeds of kl logged no steps in the same part of a run, and have no mean.",),
        ),
    ],
)
def test_training_lines_are_means_over_what_all_seeds_have(logs, x, y, said):
    runs = logged(*logs)
    line = training_line(entry(*runs), lambda point: point.base_loss)
    assert line.x.tolist() == x
    assert line.y.tolist() == pytest.approx(y)
    assert [len(steps) for steps, _ in line.seeds] == [len(log) for log in logs]
    page = RobustnessReport(runs).as_html()
    assert [sentence in page for sentence in said] == [True] * len(said)
    assert (INTERPOLATED in page) == (INTERPOLATED in said)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([{1: 30.0, 2: 30.0}, {1: 30.0, 2: 30.0}], "kl 30."),
        ([{1: 30.0, 2: 10.0}, {1: 30.0, 2: 10.0}], "kl 30 at the start, 10 at the end."),
        ([{1: 30.0, 2: 30.0}, {1: 10.0, 2: 10.0}], "kl 10 to 30."),
        ([{1: 30.0, 2: 10.0}, {1: 10.0, 2: 3.0}], "kl 10 to 30 at the start, 3 to 10 at the end."),
    ],
)
def test_the_weights_of_all_seeds_are_said(weights, said):
    page = RobustnessReport(logged({1: 2.0, 2: 1.0}, {1: 2.0, 2: 1.0}, weight=weights)).as_html()
    assert f"Weight of the alignment loss: {said}" in page


def test_long_logs_are_thinned_to_means():
    log = [TrainingPoint(step, float(step % 2), 0, 0) for step in range(6000)]
    line = training_line(entry(run("kl", log=log)), lambda point: point.base_loss)
    assert len(line.x) == 300
    assert line.merged == 20
    assert set(line.y.tolist()) == {0.5}
    assert "A point is the mean of 20 entries of the log." in RobustnessReport([run("kl", log=log)]).as_html()


def test_wise_ft_curves_are_means_over_the_alphas_that_all_seeds_have():
    curves = [[CurvePoint(0, 0.5, 0.4), CurvePoint(1, 0.7, 0.2)], [CurvePoint(0, 0.5, 0.6), CurvePoint(0.5, 0.6, 0.6)]]
    mean = wise_ft_curve(entry(*(run("kl", seed, curve=curve) for seed, curve in enumerate(curves))))
    assert mean == [CurvePoint(0, 0.5, 0.5)]


def test_the_ends_of_wise_ft_curves_are_marked_and_the_best_is_named():
    points = [CurvePoint(0, 0.7, 0.6), CurvePoint(0.5, 0.8, 0.72), CurvePoint(1, 0.9, 0.4)]
    page = RobustnessReport([run("FLYP", curve=points)], curve_axes=("average on birds", "worst group on birds"))
    text = " ".join(Elements(page.as_html()).text.split())
    assert "Highest: FLYP with alpha 0.5, worst group on birds 72.0%" in text
    assert "average on birds, in %" in text
    # The legend has the two ends; without the zero-shot model in the curve there is one.
    assert re.search("FLYP ?zero-shot ?fine-tuned", text)
    half = RobustnessReport([run("FLYP", curve=points[1:])]).as_html()
    assert not re.search("FLYP ?zero-shot ?fine-tuned", " ".join(Elements(half).text.split()))


def test_a_report_says_what_its_methods_are_and_how_they_were_trained():
    runs = [run("zero-shot"), run("FLYP"), run("star@30"), run("ours")]
    report = RobustnessReport(runs, about={"model": "lab/clip", "learning rate": "1e-05"})
    for text in (report.as_html(), RobustnessReport.from_json(report.as_json()).as_markdown()):
        assert "Finetune Like You Pretrain" in text
        assert "spurious captions of other classes" in text
        assert "lab/clip" in text.replace("\\", "")
    words = Elements(report.as_html()).text
    assert words.index("lab/clip") < words.index("All models")


def test_the_best_change_and_the_smallest_gap_are_bold():
    worse, better = Run("FLYP", 0, {"birds": result(0.7, 0.4)}), Run("kl", 0, {"birds": result(0.8, 0.75)})
    page = RobustnessReport([Run("zero-shot", 0, {"birds": result(0.75, 0.6)}), worse, better]).as_html()
    bold = re.findall(r"<td><strong>([^<]+)</strong></td>", page)
    # Average, worst group, gap and the changes of both; the calibration is the same for all.
    assert bold == ["80.0", "75.0", "5.0", "+5.0", "+15.0"]
