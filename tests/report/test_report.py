import json
import math

import numpy as np
import pytest

import starft_hf
from starft_hf import StarFTTrainer
from starft_hf.data.layouts.results import result_in
from starft_hf.report import CurvePoint, RobustnessReport, Run, TrainingPoint
from starft_hf.report.combining import combined, names_of_files
from tests.support.report_runs import all_kinds, fine_tuned, mistakes, result, run
from tests.support.tiny import make_dataset


EVIL = "a|b `c` <script>alert(1)</script>\nnext [link](javascript:x)"


def row_of(report, label):
    return next(row for row in report.rows if row.label == label)


def assert_summary(summary, mean, deviation):
    assert summary.mean == pytest.approx(mean)
    assert summary.deviation == (None if deviation is None else pytest.approx(deviation))


def test_the_public_names_are_those_of_the_report():
    assert starft_hf.RobustnessReport is RobustnessReport
    assert starft_hf.Run is Run


def test_rows_are_means_and_sample_deviations_over_seeds():
    report = RobustnessReport(all_kinds())
    assert [row.label for row in report.rows] == ["zero-shot", "FLYP", "FLYP + WiSE-FT 0.5", "StarFT"]
    star = row_of(report, "StarFT")
    assert star.seeds == (0, 1)
    assert_summary(star.average, 0.82, math.sqrt(0.0008))
    assert_summary(star.worst_group, 0.65, math.sqrt(0.005))
    # The gaps are 0.20 and 0.14.
    assert_summary(star.gap, 0.17, math.sqrt(0.0018))
    assert_summary(star.ece, 0.05, 0.0)
    assert_summary(star.average_change, 0.12, math.sqrt(0.0008))
    assert_summary(star.worst_group_change, 0.03, math.sqrt(0.005))
    assert_summary(star.groups["left"], 0.65, math.sqrt(0.005))
    assert star.worst_group_name == "left"
    zero_shot = row_of(report, "zero-shot")
    assert_summary(zero_shot.worst_group, 0.62, None)
    assert zero_shot.worst_group_change is None


def test_changes_are_against_the_baseline_of_the_same_seed_where_it_has_them_all():
    runs = [run("zero-shot", 0, worst=0.5), run("zero-shot", 1, worst=0.6)]
    runs += [run("StarFT", 0, worst=0.6), run("StarFT", 1, worst=0.7)]
    assert_summary(row_of(RobustnessReport(runs), "StarFT").worst_group_change, 0.1, 0.0)
    # Seed 2 has no counterpart: 0.6, 0.7 and 0.8 are compared with the mean, 0.55.
    report = RobustnessReport([*runs, run("StarFT", 2, worst=0.8)])
    assert_summary(row_of(report, "StarFT").worst_group_change, 0.15, 0.1)


def test_without_the_baseline_there_are_no_changes():
    report = RobustnessReport([run("FLYP"), run("StarFT", worst=0.7)])
    assert all(row.average_change is None for row in report.rows)
    assert "change to" not in report.as_markdown()
    assert "FLYP has 60.0% in its worst group" in report.findings[0].lead


def test_the_baseline_can_have_any_name():
    report = RobustnessReport([run("StarFT", worst=0.7), run("before")], baseline="before")
    assert [row.label for row in report.rows] == ["before", "StarFT"]
    assert_summary(row_of(report, "StarFT").worst_group_change, 0.1, None)


def test_the_first_sentences_give_the_figures_of_every_method():
    finding = RobustnessReport(all_kinds()).findings[0]
    assert finding.lead == (
        "On birds, zero-shot has 62.0% in its worst group and 70.0% on average. FLYP loses 20.0 points in the worst "
        "group (to 42.0%) and gains 15.0 on average (to 85.0%), and StarFT gains 3.0 (to 65.0%) and 12.0 (to 82.0%)."
    )
    assert finding.remarks == (
        "StarFT changes the worst group by no more than one standard deviation over seeds. The best worst group is "
        "that of StarFT, 65.0 \u00b1 7.1%. Means over 2 seeds."
    )


def test_the_sentences_hide_no_failure():
    finding = RobustnessReport([run("zero-shot"), run("StarFT", average=0.7, worst=0.5)]).findings[0]
    assert "StarFT loses 10.0 points in the worst group (to 50.0%) and 10.0 on average (to 70.0%)" in finding.lead
    assert "Nothing here has a better worst group than zero-shot." in finding.remarks
    assert "One seed each" in finding.remarks


def test_a_method_without_a_change_leaves_the_units_to_the_next():
    lead = RobustnessReport([run("zero-shot"), run("kl"), run("FLYP", average=0.9, worst=0.5)]).findings[0].lead
    assert lead.endswith(
        "kl changes neither the worst group (60.0%) nor the average (80.0%), and FLYP loses 10.0 points in the worst "
        "group (to 50.0%) and gains 10.0 on average (to 90.0%)."
    )


def test_methods_that_are_shown_alike_are_level():
    runs = [run("zero-shot"), run("A", worst=0.7910), run("B", worst=0.7914), run("C", worst=0.7890)]
    report = RobustnessReport(runs)
    assert "The best worst groups are those of A and B, level at 79.1%." in report.findings[0].remarks
    level = RobustnessReport([run("zero-shot", worst=0.7910), *runs[2:]]).findings[0].remarks
    assert "Nothing here has a better worst group than zero-shot." in level


def test_a_change_that_only_rounding_shows_is_said_to_be_small():
    runs = [run("zero-shot", average=0.84546), run("A", average=0.84554)]
    lead = RobustnessReport(runs).findings[0].lead
    assert lead.startswith("On birds, zero-shot has 60.0% in its worst group and 84.5% on average.")
    assert lead.endswith("A changes the worst group (to 60.0%) and the average (to 84.6%) by less than 0.05 points.")


def test_only_all_is_100_percent_and_only_none_is_0():
    report = RobustnessReport([run("A", worst=0.0004, average=0.9996), run("B", worst=0.0, average=1.0)])
    assert "A has 0.1% in its worst group and 99.9% on average, and B has 0.0% in" in report.findings[0].lead
    # A gap, a deviation and a change are differences, of which a small one is about 0.
    assert "| B | 1 | 100.0 | 0.0 | 100.0 |" in report.as_markdown()
    same = RobustnessReport([run("A", worst=0.5, average=0.5001)]).as_markdown()
    assert "| A | 1 | 50.0 | 50.0 | 0.0 |" in same


def test_of_many_methods_the_ends_are_named():
    runs = [run("zero-shot", worst=0.5), *(run(f"method {n}", worst=0.4 + n / 100) for n in range(20))]
    lead = RobustnessReport(runs).findings[0].lead
    assert "The best and the worst of 20 methods: method 19 gains 9.0" in lead
    assert "method 0 loses 10.0" in lead
    assert "method 7" not in lead


def test_markdown_has_a_row_per_model_and_dataset():
    runs = [Run(name, 0, {"birds": result(0.8, 0.6), "dogs": result(0.5, 0.3)}) for name in ("zero-shot", "StarFT")]
    text = RobustnessReport(runs).as_markdown()
    assert "| birds | zero-shot | 1 | 80.0 | 60.0 | 20.0 | 5.0 |  |  |" in text
    assert "| dogs | StarFT | 1 | 50.0 | 30.0 | 20.0 | 5.0 | 0.0 | 0.0 |" in text
    assert "| left | 50 | 30.0 | 30.0 |" in text
    assert "| birds | StarFT | 2 | 82.0 \u00b1 2.8 | 65.0" not in text
    assert "65.0 \u00b1 7.1 | 17.0 \u00b1 4.2 | 5.0 \u00b1 0.0 | +12.0 \u00b1 2.8 | +3.0 \u00b1 7.1 |" in (
        RobustnessReport(all_kinds()).as_markdown()
    )


def test_markdown_shows_names_as_they_are():
    report = RobustnessReport([run("zero-shot"), run(EVIL, dataset="birds")], title=EVIL)
    text = report.as_markdown()
    assert "<script" not in text
    assert "[link](" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace(r"\|", "").count("|") in (10, 5) for line in rows), rows
    assert r"a\|b \`c\` &lt;script&gt;alert(1)&lt;/script&gt; next \[link\](javascript:x)" in text


def test_many_groups_are_cut_to_the_hardest():
    groups = {f"class {n}": 0.3 + n / 200 for n in range(100)}
    base = result(0.8, 0.3)
    many = type(base)(0.8, 0.3, groups, dict.fromkeys(groups, 10), 0.7, 0.05)
    report = RobustnessReport([Run("zero-shot", 0, {"many": many})])
    text = report.as_markdown()
    assert "The 12 groups of 100" in text
    assert "| class 11 |" in text
    assert "| class 12 |" not in text
    assert len(json.loads(report.as_json())["rows"][0]["groups"]) == 100


def test_json_gives_the_report_back():
    report = RobustnessReport(all_kinds(), baseline="FLYP", title="t\u00eftle", curve_axes=("average", "worst group"))
    again = RobustnessReport.from_json(report.as_json())
    assert again.runs == report.runs
    assert again.rows == report.rows
    assert (again.title, again.baseline, again.curve_axes) == (report.title, "FLYP", ("average", "worst group"))
    assert again.as_json() == report.as_json()
    assert again.as_html() == report.as_html()


def test_json_has_the_thumbnails_that_the_page_shows():
    images = dict(enumerate(make_dataset(size=20, image_size=200)["image"]))
    report = RobustnessReport(all_kinds(), thumbnails={"birds": images})
    again = RobustnessReport.from_json(report.as_json())
    assert again.as_html() == report.as_html()
    assert "no image" not in again.as_html()
    assert sorted(again.thumbnails["birds"]) == [0, 1, 2, 3]
    assert "no image" in RobustnessReport.from_json(report.as_json(), thumbnails={}).as_html()


@pytest.mark.parametrize("uri", ["owl.png", "data:image/png;base64,AAAA", 7])
def test_thumbnails_that_cannot_be_read_are_refused(uri):
    content = json.loads(RobustnessReport(all_kinds()).as_json()) | {"thumbnails": {"birds": {"0": uri}}}
    with pytest.raises(ValueError, match="cannot be read"):
        RobustnessReport.from_json(json.dumps(content))


def methods(*reports, **settings):
    return [(run.method, run.seed) for run in combined(reports, **settings)]


def test_runs_of_several_reports_get_names_that_tell_them_apart():
    zero_shot, one, other = run("zero-shot", 42), run("star", 42), run("star", 42, worst=0.7)
    assert methods(("A", [zero_shot, one]), ("B", [run("zero-shot", 43), other])) == [
        ("zero-shot", 42),
        ("A", 42),
        ("B", 42),
    ]
    # One report keeps its names; the same name stands for seeds of one model.
    assert methods(("A", [zero_shot, one])) == [("zero-shot", 42), ("star", 42)]
    assert methods(("A", [zero_shot, one]), ("A", [zero_shot, run("star", 43)])) == [
        ("zero-shot", 42),
        ("star", 42),
        ("star", 43),
    ]
    # Of several methods, those that both have.
    assert methods(("A", [zero_shot, one, run("kl")]), ("B", [zero_shot, other, run("FLYP")])) == [
        *[("zero-shot", 42), ("star (A)", 42), ("kl", 0), ("star (B)", 42), ("FLYP", 0)],
    ]
    # Of different models.
    assert methods(("A", [zero_shot, one]), ("B", [run("zero-shot", 42, worst=0.5), other])) == [
        *[("zero-shot (A)", 42), ("A", 42), ("zero-shot (B)", 42), ("B", 42)],
    ]
    assert methods(("A", [zero_shot, one]), ("B", [zero_shot, other]), baseline="star")[0] == ("zero-shot", 42)


def test_files_of_reports_are_named_by_their_folders(tmp_path):
    def names(*files):
        return names_of_files([tmp_path / file for file in files])

    assert names("a/report.json", "b/report.json") == ["a", "b"]
    assert names("a/out/report.json", "b/out/report.json", "c/report.json") == ["a/out", "b/out", f"{tmp_path.name}/c"]
    assert names("a/one.json", "a/two.json") == ["one", "two"]
    assert names("a/report.json", "a/../a/report.json") == ["a", "a"]


def test_json_is_strict_and_keeps_what_diverged():
    log = [TrainingPoint(1, math.nan, math.inf, 0.5)]
    report = RobustnessReport([run("FLYP", np.int64(3), np.float32(0.5), 0.25, ece=math.nan, log=log)])
    content = json.loads(report.as_json(), parse_constant=pytest.fail)
    assert content["rows"][0]["average"]["mean"] == 0.5
    again = RobustnessReport.from_json(report.as_json())
    assert again.runs[0].seed == 3
    assert math.isnan(again.runs[0].log[0].base_loss)
    assert math.isnan(again.rows[0].ece.mean)
    assert "| nan |" in again.as_markdown()
    assert "<svg" in again.as_html()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": []}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a report; pass the content of a report\.json"):
        RobustnessReport.from_json(text)


def test_json_of_a_later_version_is_refused():
    with pytest.raises(ValueError, match=r"has format 2, this version reads 1; update starft_hf"):
        RobustnessReport.from_json('{"starft_report": 2}')


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "there are no runs to report; pass at least one Run"),
        ([run("kl", 3), run("kl", 3)], "contains duplicates of the run 'kl', seed 3;"),
        ([run("kl", 3, interpolated=0.5)] * 2, r"contains duplicates of the run 'kl', seed 3, interpolated 0\.5;"),
        (
            [run("kl"), run("star", dataset="dogs")],
            r"evaluated on \['birds'\], .* on \['dogs'\]; evaluate all runs of a report",
        ),
        ([run("kl"), run("star", groups=("left", "up"))], "these are not the same data"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, said):
    with pytest.raises(ValueError, match=said):
        RobustnessReport(runs)


def test_thumbnails_of_an_unknown_dataset_are_refused():
    with pytest.raises(ValueError, match=r"thumbnails: unknown dataset 'bird'\. Did you mean 'birds'"):
        RobustnessReport([run("kl")], thumbnails={"bird": {}})


def test_what_is_not_a_fraction_is_refused():
    with pytest.raises(ValueError, match=r"accuracy of the run 'kl', seed 0 on 'birds' is 79\.1.*divide percentages"):
        run("kl", average=79.1)
    with pytest.raises(ValueError, match=r"interpolated of the run 'kl'.* is -0\.1"):
        run("kl", interpolated=-0.1)
    with pytest.raises(ValueError, match=r"alpha of the WiSE-FT curve of the run 'kl', seed 0 is 2"):
        run("kl", curve=[CurvePoint(2, 0.5, 0.5)])
    with pytest.raises(ValueError, match=r"has no results"):
        Run("kl", 0, {})


def test_training_points_come_from_the_trainers_own_log(clip, processor, config, dataset):
    trainer = StarFTTrainer(
        clip, config(reg_weight=2.0, reg_schedule="linear", max_steps=3), dataset, processing_class=processor
    )
    trainer.train()
    points = TrainingPoint.from_log_history(trainer.state.log_history)
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.reg_weight for point in points] == pytest.approx([4 / 3, 2 / 3, 0])
    assert all(point.base_loss > 0 for point in points)
    assert points[2].reg_loss > 0


def test_training_points_of_another_trainer_have_no_alignment_loss():
    history = [{"loss": 2.0, "step": 5}, {"eval_loss": 1.0, "step": 5}, {"train_loss": 1.5, "step": 9}]
    assert TrainingPoint.from_log_history(history) == [TrainingPoint(5, 2.0, 0.0, 0.0)]


def test_saving_writes_three_files_that_agree(tmp_path):
    report = RobustnessReport(all_kinds())
    page = report.save(tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    assert result_in([path.name for path in page.parent.iterdir()]) is not None
    assert page.read_text(encoding="utf-8") == report.as_html()
    assert page.with_suffix(".md").read_text(encoding="utf-8") == report.as_markdown()
    assert RobustnessReport.from_json(page.with_suffix(".json").read_text(encoding="utf-8")).runs == report.runs


def test_a_report_that_is_there_is_kept_unless_said_otherwise(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.md").write_text("old")
    report = RobustnessReport([run("kl")])
    with pytest.raises(FileExistsError, match=r"has report\.md already; choose another folder or pass overwrite=True"):
        report.save(tmp_path)
    assert (tmp_path / "report.md").read_text() == "old"
    assert not (tmp_path / "report.html").exists()
    report.save(tmp_path, overwrite=True)
    assert (tmp_path / "report.md").read_text() == report.as_markdown()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_page_that_cannot_be_made_leaves_nothing_behind(tmp_path):
    broken = RobustnessReport([run("kl", mistakes=mistakes())], thumbnails={"birds": {0: "owl.png"}})
    with pytest.raises(TypeError, match="an image is of type str"):
        broken.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_curves_are_in_order_of_alpha():
    points = [CurvePoint(alpha, 0.5, 0.5) for alpha in (1, 0, 0.5)]
    assert [point.alpha for point in run("kl", curve=points).curve] == [0, 0.5, 1]
    assert fine_tuned("kl", 0, 0.8, 0.6).curve[-1].worst_group == pytest.approx(0.6)


def test_notebooks_show_the_tables():
    from IPython.core.interactiveshell import InteractiveShell

    report = RobustnessReport(all_kinds())
    shown, _ = InteractiveShell.instance().display_formatter.format(report)
    assert shown["text/markdown"] == report.as_markdown()
