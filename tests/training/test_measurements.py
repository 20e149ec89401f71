"""What the results of a run are compared with: the weights it started from, on the same data, and nothing else."""

import copy
from pathlib import Path

import pytest
import torch

from starft_hf import ExponentialAverageCallback, StarFTTrainer
from starft_hf.training import hub_mixin
from starft_hf.utils.text import points
from tests.support.tiny import make_dataset


SETTINGS = {"warmup_steps": 0, "group_column": "group"}
SAVING = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    monkeypatch.setattr(hub_mixin, "save_figures", lambda *args: [])


@pytest.fixture
def make(clip, processor, config, dataset):
    def make(peft_config=None, callbacks=(), **settings):
        # An adapter's first weights come from the global generator.
        torch.manual_seed(0)
        return StarFTTrainer(
            copy.deepcopy(clip),
            config(learning_rate=3e-2 if peft_config else 1e-3, **SETTINGS | settings),
            dataset,
            {"plain": dataset, "shifted": make_dataset(seed=7)},
            processing_class=processor,
            peft_config=peft_config,
            zero_shot_probe=make_dataset(8, seed=9),
            callbacks=list(callbacks),
        )

    return make


def changes_in_card(trainer):
    """The changes of the worst groups in the card's table, by name of the dataset."""
    trainer.create_model_card()
    text = Path(trainer.args.output_dir, "README.md").read_text().partition("## Results")[2].partition("## ")[0]
    text = text.partition("Accuracy of every group")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {row[1]: row[7] for row in rows[2:]}


def changes(before, results):
    return {
        name: points(result.worst_group_accuracy - before[name].worst_group_accuracy)
        for name, result in results.items()
    }


@pytest.mark.parametrize("peft_config", [None, "lora"])
def test_a_second_training_is_compared_with_the_start_of_the_first(make, peft_config):
    start = make(peft_config)
    start.evaluate()
    # So little that the worst group changes.
    trainer = make(peft_config, eval_on_start=True, reg_weight=0.5, plain_caption_share=0)
    trainer.train()
    before, retained = dict(trainer.zero_shot_results), trainer.retention["probe"].before
    assert before == start.evaluation_results
    trainer.train()
    assert trainer.zero_shot_results == before
    assert trainer.retention["probe"].before == retained
    trainer.evaluate()
    assert trainer.evaluation_results != before
    assert set(changes(before, trainer.evaluation_results).values()) != {"0.0"}
    assert changes_in_card(trainer) == changes(before, trainer.evaluation_results)


def test_an_evaluation_before_training_counts_unless_other_weights_were_loaded(make):
    trainer = make()
    trainer.evaluate()
    before = dict(trainer.zero_shot_results)
    trainer.train()
    assert trainer.zero_shot_results == before
    again = make()
    again.evaluate()
    again.model.load_state_dict(trainer.model.state_dict())
    again.train()
    assert again.zero_shot_results == {}


@pytest.mark.parametrize(
    ("measured", "peft_config"), [("eval_on_start", None), ("evaluate", "lora"), ("when resumed", None)]
)
def test_a_run_that_is_resumed_elsewhere_is_compared_with_its_start(make, measured, peft_config, tmp_path):
    first = make(peft_config, eval_on_start=measured == "eval_on_start", **SAVING)
    if measured == "evaluate":
        first.evaluate()
    first.train()
    resumed = make(peft_config, eval_on_start=measured != "evaluate", **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    start = make(peft_config)
    start.evaluate()
    assert resumed.zero_shot_results == start.evaluation_results
    assert resumed.retention == first.retention
    assert resumed.evaluation_results == first.evaluation_results


def test_the_card_of_the_best_model_has_its_results(make):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_plain_loss"}
    # The first step is the best one.
    trainer = make("lora", eval_on_start=True, **SAVING, **best, greater_is_better=True)
    trainer.train()
    assert trainer.state.best_global_step < trainer.state.global_step
    found = dict(trainer.evaluation_results)
    card = changes_in_card(trainer)
    trainer.evaluate()
    assert trainer.evaluation_results == found
    assert card == changes(trainer.zero_shot_results, found)


def test_results_of_other_weights_or_other_data_are_not_in_the_card(make, caplog):
    average = ExponentialAverageCallback(decay=0.5)
    trainer = make(callbacks=[average], eval_on_start=True)
    trainer.train()
    with average.averaged(trainer.model):
        trainer.evaluate()
        assert set(changes_in_card(trainer)) == {"plain", "shifted"}
    assert changes_in_card(trainer) == {}
    assert "The weights have changed since 'plain' was evaluated" in caplog.text
    # The same classes and groups, of other images.
    trainer.evaluate(make_dataset(seed=3), metric_key_prefix="eval_plain")
    assert changes_in_card(trainer) == {"plain": ""}
    trainer.evaluate()
    assert "" not in changes_in_card(trainer).values()
