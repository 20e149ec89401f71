"""What a run shows: losses, few figures under names that trackers take, bars with names, and no warnings of others."""

import re
import warnings

import pytest

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.utils.names import log_names
from tests.support.tiny import CLASS_NAMES, MANY_NAMES, make_dataset


# One name has what W&B takes for a section.
CLASSES = [*MANY_NAMES[:20], "owl/truck", "owl violin", "violin_owl"]


def groups_in(metrics, prefix="eval"):
    return {name for name in metrics if name.startswith(f"{prefix}_accuracy_")}


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        # The classes: as many as there are, and nobody asked for them.
        (None, set()),
        ("group", {"eval_accuracy_left", "eval_accuracy_far_right"}),
        # 23 groups.
        ("label", set()),
    ],
)
def test_evaluation_logs_few_figures_and_keeps_all(clip, processor, config, columns, shown):
    dataset = make_dataset(46, class_names=CLASSES, group_names=("left", "far right"))
    sets = {"eval": dataset, "in the wild": dataset}
    trainer = StarFTTrainer(clip, config(group_column=columns), dataset, sets["eval"], processing_class=processor)
    metrics = trainer.evaluate()
    assert groups_in(metrics) == shown
    result = trainer.evaluation_results["eval"]
    assert len(result.group_accuracies) == (2 if columns == "group" else len(CLASSES))
    assert metrics["eval_worst_group"] == result.worst_group
    assert metrics["eval_worst_group_accuracy"] == result.worst_group_accuracy
    assert not any(re.search(r"[\s/]", name) for name in metrics)
    trainer.evaluate(sets)
    assert not any(re.search(r"[\s/]", name) for entry in trainer.state.log_history for name in entry)
    assert trainer.state.log_history[-1]["eval_in_the_wild_accuracy"] == result.accuracy


def test_names_in_logs_are_distinct():
    assert log_names(["owl x left", "a/b", "a b", "a_b", "?"]).values() != set()
    assert list(log_names(["owl x left", "a/b", "a b", "a_b", "?"]).values()) == [
        "owl_x_left",
        "a_b",
        "a_b_2",
        "a_b_3",
        "unnamed",
    ]


@pytest.mark.parametrize("metric", ["eval_accuracy_violin", "eval_accuracy_owl x left", "accuracy_owl_x_left"])
def test_the_best_model_may_be_that_of_a_group(clip, processor, config, dataset, metric):
    columns = None if "violin" in metric else ["label", "group"]
    steps = dict.fromkeys(("save_strategy", "eval_strategy"), "steps") | dict.fromkeys(("save_steps", "eval_steps"), 1)
    args = config(metric_for_best_model=metric, load_best_model_at_end=True, group_column=columns, **steps)
    trainer = StarFTTrainer(clip, args, dataset, dataset, processing_class=processor)
    trainer.train()
    group = "violin" if columns is None else "owl x left"
    assert trainer.state.best_metric is not None
    assert trainer.state.best_metric == trainer.evaluation_results["eval"].group_accuracies[group]


def test_the_name_of_the_worst_group_is_no_metric(config):
    with pytest.raises(ValueError, match="the name of a group; use its accuracy, eval_worst_group_accuracy"):
        config(metric_for_best_model="eval_worst_group")


@pytest.mark.parametrize("peft_config", [None, "lora"])
def test_a_default_run_shows_losses_and_named_bars_and_does_not_warn(
    clip, processor, dataset, tmp_path, peft_config, capsys, caplog
):
    caches = {"output_dir": str(tmp_path / "output"), "reference_cache_dir": str(tmp_path / "features")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)
        args = StarFTConfig(**caches, max_steps=10, per_device_train_batch_size=8, report_to="none")
        held = {"peft_config": peft_config, "processing_class": processor}
        trainer = StarFTTrainer(clip, args, dataset, dataset, **held)
        trainer.train()
        trainer.evaluate()
    assert [str(warning.message) for warning in caught] == []
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [10]
    bars = {line.partition(":")[0].strip() for line in re.split(r"[\r\n]", capsys.readouterr().err) if "100%|" in line}
    assert {"Training", "Evaluating", "Reference captions"} <= bars
    assert not any(re.search(r"\d+%", name) for name in bars)
    assert set(trainer.evaluation_results["eval"].group_accuracies) == set(CLASS_NAMES)
