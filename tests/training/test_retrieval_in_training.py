"""Retrieval as evaluation of a run: its metrics, the best model, what was forgotten, the card and the report."""

import copy
import json
from pathlib import Path

import pytest

from starft_hf import RobustnessReport, StarFTTrainer, compare, evaluate_retrieval, tune
from starft_hf.evaluation.results import MEAN_RECALL, RECALLS, RetrievalResult
from tests.support.tiny import captioned, make_dataset


BEST = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "learning_rate": 1e-2, "caption_column": "caption"}


@pytest.fixture
def make(clip, processor, config):
    def make(train=None, evaluated=None, model=None, **settings):
        kwargs = {name: settings.pop(name) for name in ("zero_shot_probe", "compute_metrics") if name in settings}
        train = captioned() if train is None else train
        return StarFTTrainer(
            model or copy.deepcopy(clip),
            config(**settings),
            train,
            evaluated,
            processing_class=processor,
            **kwargs,
        )

    return make


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("iterable", [False, True])
def test_an_evaluation_set_of_captions_is_retrieved(make, clip, processor, iterable):
    rows = captioned(13, seed=3)
    trainer = make(evaluated=rows.to_iterable_dataset() if iterable else rows, caption_column="caption")
    found = trainer.evaluate()
    expected = evaluate_retrieval(clip, processor, rows, progress=False)
    assert {name: found[f"eval_{name}"] for name in (*RECALLS, MEAN_RECALL)} == expected.metrics()
    assert trainer.evaluation_results == {"eval": expected}
    assert not [name for name in found if "accuracy" in name or "loss" in name]


def test_it_chooses_the_best_model(make, clip, processor):
    rows = {"shop": captioned(13, seed=3), "plain": make_dataset(8)}
    trainer = make(evaluated=rows, metric_for_best_model="eval_shop_mean_recall", **BEST, **EVALUATED)
    trainer.train()
    seen = logged(trainer, "eval_shop_mean_recall")
    assert len(seen) == 3
    assert trainer.state.best_metric == max(seen)
    found = evaluate_retrieval(trainer.model, processor, rows["shop"], progress=False)
    assert found.mean_recall == pytest.approx(max(seen))
    assert trainer.evaluation_results["shop"] == found


def test_labels_are_classified_unless_retrieval_is_asked_for(make):
    rows = make_dataset(8).add_column("caption", captioned(8)["caption"])
    assert "eval_accuracy" in make(rows, rows).evaluate()
    assert "eval_accuracy" in make(rows, rows, caption_column="caption").evaluate()
    found = make(rows, rows, eval_task="retrieval").evaluate()
    assert "eval_mean_recall" in found
    assert "eval_accuracy" not in found
    both = make(rows, {"a": rows, "b": rows.remove_columns("label")}).evaluate()
    assert {"eval_a_accuracy", "eval_b_mean_recall"} <= set(both)


def test_what_training_makes_of_retrieval_is_retention(make, clip, processor, tmp_path):
    probe = captioned(12, seed=8)
    settings = {"learning_rate": 1e-1, "group_column": "group", "save_strategy": "steps", "save_steps": 2}
    trainer = make(make_dataset(), zero_shot_probe={"captions": probe, "classes": make_dataset(8)}, **settings)
    trainer.train()
    kept = trainer.retention["captions"]
    assert kept.before == evaluate_retrieval(clip, processor, probe, progress=False)
    assert kept.after == evaluate_retrieval(trainer.model, processor, probe, progress=False)
    assert kept.change == kept.after.mean_recall - kept.before.mean_recall != 0
    (entry,) = [entry for entry in trainer.state.log_history if "captions_mean_recall" in entry]
    assert entry["captions_mean_recall_change"] == kept.change
    assert entry["captions_image_to_text_recall_at_1"] == kept.after.image_to_text_recall_at_1
    assert "classes_accuracy_change" in entry
    trainer.create_model_card()
    card = Path(trainer.args.output_dir, "README.md").read_text()
    assert "| captions | Mean recall at 1, 5 and 10, both ways |" in card
    assert "| classes | Accuracy |" in card
    # A run that is resumed compares with the start of the first.
    again = make(make_dataset(), zero_shot_probe={"captions": probe, "classes": make_dataset(8)}, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    assert again.retention["captions"].before == kept.before
    # Other weights than those that were measured have no such table.
    trainer.model.load_state_dict(clip.state_dict())
    trainer.create_model_card()
    assert "Mean recall" not in Path(trainer.args.output_dir, "README.md").read_text()


# A model that would be looked for on the Hub.
NOT_LOADED = "nobody/nothing"

METRICS = {
    "loss": ({}, "is evaluated by retrieval.*eval_mean_recall"),
    "eval_accuracy": ({}, "unknown metric 'accuracy'"),
    "eval_mean_recal": ({}, "Did you mean 'mean_recall'"),
    "eval_b_accuracy": ({"sets": True}, "eval_dataset 'b' is evaluated by retrieval.*eval_b_mean_recall"),
    "eval_a_mean_recall": ({"sets": True}, "images of eval_dataset 'a' are classified.*eval_task='retrieval'"),
    "mean_recall": ({"sets": True}, "not a metric of any of the evaluation sets"),
}


@pytest.mark.parametrize("metric", METRICS)
def test_a_best_metric_that_there_will_not_be_is_refused_at_once(make, metric):
    settings, reason = METRICS[metric]
    rows = captioned(6)
    evaluated = {"a": make_dataset(6), "b": rows} if settings else rows
    with pytest.raises(ValueError, match=reason):
        make(make_dataset(), evaluated, model=NOT_LOADED, metric_for_best_model=metric)


def test_what_does_not_fit_is_refused_or_warned_of(make, caplog, processor, config, clip):
    rows = captioned(6)
    with pytest.raises(ValueError, match="no column 'label'"):
        make(evaluated=rows, eval_task="classification", caption_column="caption")
    with pytest.raises(ValueError, match="no column 'caption'"):
        make(make_dataset(), make_dataset(6), eval_task="retrieval")
    with pytest.raises(ValueError, match=r"row 5: column 'caption' has no caption"):
        make(
            evaluated=rows.map(lambda row, index: {"caption": [] if index == 5 else row["caption"]}, with_indices=True)
        )
    with pytest.raises(ValueError, match="zero_shot_probe 'probe', row 0: column 'caption' has no caption"):
        make(make_dataset(), zero_shot_probe=rows.map(lambda row: {"caption": []}))
    with pytest.raises(ValueError, match="zero_shot_probe 'probe' is an iterable dataset"):
        make(make_dataset(), zero_shot_probe=rows.to_iterable_dataset())
    with pytest.raises(ValueError, match="Did you mean 'retrieval'"):
        config(eval_task="retrival")
    with pytest.raises(ValueError, match="tune chooses by the accuracy"):
        tune(clip, config(), make_dataset(), rows, processing_class=processor)
    metrics = {"compute_metrics": lambda prediction: {"own": 1.0}}
    trainer = make(evaluated=rows, caption_column="caption", group_column="group", eval_templates=["a {}"], **metrics)
    assert "group_column='group' has no effect on retrieval" in caplog.text
    assert "eval_templates=['a {}'] has no effect on retrieval" in caplog.text
    assert "eval_own" not in trainer.evaluate()
    assert "compute_metrics is not called" in caplog.text
    with pytest.raises(ValueError, match="predict\\(\\) classifies images"):
        trainer.predict(rows)
    make(make_dataset(), eval_task="retrieval")
    assert "eval_task='retrieval' has no effect without an evaluation set" in caplog.text


def test_a_comparison_reports_both(clip, processor, config, tmp_path):
    pytest.importorskip("jinja2")
    sets = {"captions": captioned(9, seed=4), "photos": make_dataset(9, seed=4)}
    settings = config(learning_rate=1e-2)
    report = compare(
        clip, settings, make_dataset(), sets, methods=["zero-shot", "kl"], alpha=0.5, processing_class=processor
    )
    assert [run.results["captions"].__class__ for run in report.runs] == [RetrievalResult] * 3
    assert [point.alpha for point in report.runs[1].curve] == [0, 0.5, 1]
    page = report.save(tmp_path / "report").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    change = report.runs[1].results["captions"].mean_recall - report.runs[0].results["captions"].mean_recall
    assert f"{abs(100 * change):.1f} points of mean recall" in text
    assert "text to image R@10" in text
    assert '<h2 id="retrieval">Retrieval</h2>' in page
    content = (tmp_path / "report" / "report.json").read_text()
    assert json.loads(content)["retrieval"][1]["change"]["mean"] == pytest.approx(change)
    again = RobustnessReport.from_json(content)
    assert again.runs == report.runs
    assert again.as_markdown() == text
    # A report on nothing else.
    only = [run.__class__(run.method, 0, {"captions": run.results["captions"]}, log=run.log) for run in again.runs[:2]]
    alone = RobustnessReport(only)
    assert "worst group" not in alone.as_markdown()
    assert "Losses while training." in alone.as_html()
    assert alone.save_figures(tmp_path / "figures") == []
