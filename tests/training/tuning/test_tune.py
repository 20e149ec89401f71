"""Weight, method and alpha are chosen on validation data, and the model that was chosen is saved."""

import json
from functools import partial

import pytest
import torch
from transformers import TrainingArguments

from starft_hf import StarFTConfig, StarFTTrainer, compare, evaluate_zero_shot, load, tune
from starft_hf.data.layouts.results import result_in
from starft_hf.hub.record import RunRecord
from starft_hf.reference.live import LiveReference
from starft_hf.training.checkpointing.interruption import TrainingInterrupted
from starft_hf.training.tuning import TuningResult, search
from starft_hf.training.tuning.store import TuningStore
from tests.support.tiny import TINY_CLIP, make_dataset


POOL = ["{} in the snow.", "{} at night."]
TRAIN, VALIDATION, TEST = make_dataset(), make_dataset(seed=4), make_dataset(seed=5)


def settings_in(folder, **more):
    """Settings of short runs, of which some are better than the model that they start from."""
    return StarFTConfig(
        **{
            "output_dir": str(folder / "output"),
            "reference_cache_dir": str(folder / "features"),
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "reg_schedule": "constant",
            "group_column": "group",
            "crop_scale": None,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **more,
        }
    )


@pytest.fixture
def settings(tmp_path):
    return partial(settings_in, tmp_path)


def tuned(args, **arguments):
    given = {"methods": ["kl"], "weights": [1, 30, 900], "alphas": [0.4, 1], "spuriosity": POOL}
    return tune(str(TINY_CLIP), args, TRAIN, VALIDATION, **{**given, **arguments})


def test_what_is_chosen_is_saved_as_it_was_measured_and_runs_that_paused_are_whole_runs(
    settings, processor, monkeypatch, tmp_path
):
    forwards, run = [], LiveReference._run
    monkeypatch.setattr(LiveReference, "_run", lambda self, compute: forwards.append(1) or run(self, compute))
    result = tuned(settings(), test_dataset=TEST)
    # All of the first run: one for the captions, and one for the images.
    assert len(forwards) == 2
    assert [row.label for row in result.table] == ["zero-shot", "kl@1", "kl@30", "kl@900"]
    assert sorted(row.trained for row in result.table[1:]) == [0.25, 1, 1]
    best = result.best
    assert best.method == "kl"
    assert best.worst_group == max(row.worst_group for row in result.table if row.trained != 0.25)

    folder = tmp_path / "output"
    assert json.loads((folder / "tuning.json").read_text())["outcome"]["best"] == {
        "method": "kl",
        "reg_weight": best.reg_weight,
        "alpha": best.alpha,
    }
    saved, record = load(folder), RunRecord.load(folder)
    assert (StarFTConfig.from_pretrained(folder).reg_weight, record.alpha) == (best.reg_weight, best.alpha)
    assert "the weight of the fine-tuned model" in (folder / "README.md").read_text()
    for dataset, accuracy in ((VALIDATION, best.worst_group), (TEST, result.test["test"][best.label])):
        again = evaluate_zero_shot(saved.model, saved.processor, dataset, group_column="group", progress=False)
        assert again.worst_group_accuracy == getattr(accuracy, "worst_group_accuracy", accuracy)
    assert again.loss == pytest.approx(accuracy.loss, rel=1e-6)
    assert {path.name for path in folder.iterdir()} >= {"tuning.md", "tuning.png", "report.html", "starft.json"}
    assert result_in({path.name for path in folder.iterdir()} - {"starft.json", "config.json"}) is not None
    assert not (folder / "candidates").exists()

    trainer = StarFTTrainer(
        str(TINY_CLIP),
        settings(output_dir=str(tmp_path / "alone"), regularizer="kl", reg_weight=best.reg_weight),
        TRAIN,
        spuriosity=POOL,
    )
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(torch.lerp(start[name], value, best.alpha), saved.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tuning that nothing ended, and the weights that it saved."""
    folder = tmp_path_factory.mktemp("whole")
    return tuned(settings_in(folder)), load(folder / "output").model.state_dict()


class Killed(BaseException):
    pass


def kill(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        # Once a checkpoint is written and its results are not kept; then in the middle of a run, and of saving.
        pytest.param(TuningStore, "add", 2, marks=pytest.mark.slow),
        (TuningStore, "add", 5),
        pytest.param(StarFTTrainer, "compute_loss", 7, marks=pytest.mark.slow),
        pytest.param(StarFTTrainer, "create_model_card", 1, marks=pytest.mark.slow),
    ],
)
def test_a_tuning_that_was_killed_ends_as_one_that_was_not(owner, name, call, settings, whole, monkeypatch, tmp_path):
    calls, real = [], getattr(owner, name)

    def counted(*args, **kwargs):
        calls.append(1)
        return (kill if len(calls) == call else real)(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    with pytest.raises(Killed):
        tuned(settings())
    again = tuned(settings())
    assert (again.table, again.best) == (whole[0].table, whole[0].best)
    state = load(tmp_path / "output").model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole[1].items())


def test_what_is_finished_is_not_trained_again_and_not_mixed_with_other_settings(settings, monkeypatch, caplog):
    first = tuned(settings(max_steps=1), weights=[1])
    monkeypatch.setattr(StarFTTrainer, "train", kill)
    assert tuned(settings(max_steps=1), weights=[1]).as_dict() == first.as_dict()
    assert "already contains this tuning" in caplog.text
    with pytest.raises(ValueError, match=r"settings or data: .*learning_rate was 0\.01 and is 0\.1.*another output"):
        tuned(settings(max_steps=1, learning_rate=0.1), weights=[1])
    with pytest.raises(ValueError, match=r"number 1 was 0\.4 and is 0\.5"):
        tuned(settings(max_steps=1), weights=[1], alphas=[0.5, 1])
    with pytest.raises(ValueError, match="candidates number 1 was 'kl@1' and is 'kl@2'"):
        tuned(settings(max_steps=1), weights=[2])
    with pytest.raises(ValueError, match="rows of validation number 2"):
        tune(str(TINY_CLIP), settings(max_steps=1), TRAIN, TEST, methods=["kl"], weights=[1], alphas=[0.4, 1])


def test_the_zero_shot_model_is_chosen_where_nothing_is_better(settings, clip, tmp_path):
    result = tuned(settings(learning_rate=0.0, max_steps=1), weights=None, methods=["FLYP"], test_dataset=TEST)
    assert result.as_dict()["best"] == {"method": "zero-shot", "reg_weight": None, "alpha": 0.0}
    assert list(result.test["test"]) == ["zero-shot"]
    assert "No fine-tuned model was better" in result.sentences[0]
    state = load(tmp_path / "output").model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in clip.state_dict().items())
    assert RunRecord.load(tmp_path / "output").alpha == 0


def test_a_run_that_diverges_is_no_longer_a_candidate(settings, monkeypatch):
    train = StarFTTrainer.train

    def diverge(self, *args, **kwargs):
        output = train(self, *args, **kwargs)
        if self.args.reg_weight == 900:
            raise FloatingPointError("training stops at step 3")
        return output

    monkeypatch.setattr(StarFTTrainer, "train", diverge)
    result = tuned(settings())
    assert [row.diverged for row in result.table] == [None, None, None, "training stops at step 3"]
    assert [row.trained for row in result.table] == [0, 1, 1, 0]
    assert TuningResult.from_dict(result.as_dict()).table == result.table
    assert "diverged" in result.as_markdown()


@pytest.mark.parametrize(
    "more",
    [{"base_loss": "cross_entropy"}, {"peft_config": "lora"}, {"peft_config": "lora", "base_loss": "cross_entropy"}],
    ids=str,
)
def test_heads_and_adapters_are_interpolated_and_saved_as_they_were_measured(more, settings, tmp_path, monkeypatch):
    # Whatever its figures are, so that it is chosen.
    monkeypatch.setattr(search, "score", lambda point, by: point.alpha)
    adapter = {"peft_config": more["peft_config"]} if "peft_config" in more else {}
    args = settings(max_steps=1, **{name: value for name, value in more.items() if name not in adapter})
    result = tuned(args, weights=[1], alphas=[0.5], test_dataset=TEST, **adapter)
    assert (result.best.label, result.best.alpha) == ("kl@1", 0.5)
    output = tmp_path / "output"
    saved = load(output)
    again = evaluate_zero_shot(
        *(saved.model, saved.processor, TEST), head=saved.head, group_column="group", progress=False
    )
    assert again.loss == pytest.approx(result.test["test"]["kl@1"].loss, rel=1e-6)
    assert again.loss != pytest.approx(result.test["test"]["zero-shot"].loss, rel=1e-4)
    # Interpolated weights are no adapter.
    assert type(saved.model).__name__ == "CLIPModel"
    assert not (output / "adapter_config.json").exists()
    assert RunRecord.load(output).alpha == 0.5


def test_an_adapter_that_is_chosen_alone_is_saved_as_one(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "score", lambda point, by: point.alpha)
    result = tuned(settings(max_steps=1), weights=[1], peft_config="lora", alphas=[1])
    assert (result.best.label, result.best.alpha) == ("kl@1", 1.0)
    assert (tmp_path / "output" / "adapter_config.json").exists()


def test_the_alphas_of_an_adapter_are_those_of_a_whole_model(settings):
    assert tuned(settings(max_steps=1), weights=[1], peft_config="lora", alphas=None).models == 11


def test_quantized_weights_are_not_interpolated(settings, clip, processor, monkeypatch):
    clip.visual_projection.weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    shared = {"processing_class": processor, "spuriosity": POOL}
    with pytest.raises(ValueError, match=r"those of the model are quantized; pass alphas=\[1\]"):
        tune(clip, settings(), TRAIN, VALIDATION, alphas=[0.5], methods=["kl"], weights=[1], **shared)
    with pytest.raises(ValueError, match="quantized; pass alpha=None"):
        compare(clip, settings(), TRAIN, VALIDATION, methods=["FLYP"], **shared)


def test_sigterm_ends_a_tuning_which_then_continues(settings, monkeypatch):
    monkeypatch.setattr(StarFTTrainer, "train", lambda *_, **__: (_ for _ in ()).throw(TrainingInterrupted()))
    with pytest.raises(TrainingInterrupted):
        tuned(settings(max_steps=1), weights=[1])
    monkeypatch.undo()
    assert tuned(settings(max_steps=1), weights=[1]).table[1].trained == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"args": TrainingArguments()}, "pass a StarFTConfig"),
        ({"train_dataset": None}, "nothing to train on"),
        ({"eval_dataset": None}, "nothing to choose by"),
        ({"eval_dataset": TRAIN}, "eval_dataset is the same as train_dataset"),
        ({"test_dataset": VALIDATION}, "test_dataset is the same as eval_dataset"),
        ({"eval_dataset": {"a": VALIDATION, "b": TEST}}, "pass the one set to choose by"),
        ({"test_dataset": {"validation": TEST}}, "both called 'validation'"),
        ({"select_by": "worst"}, "unknown select_by 'worst'. Did you mean 'worst_"),
        ({"methods": ["k1"]}, "unknown method 'k1'. Did you mean 'kl'"),
        ({"methods": ["zero-shot"]}, "at least one besides 'zero-shot'"),
        ({"methods": ["FLYP"]}, r"weights=\[1\] has no effect"),
        ({"methods": ["FLYP@3"], "weights": None}, "has no regularizer"),
        ({"methods": ["kl", "kl"]}, "without duplicates"),
        ({"methods": ["L2-SP"], "weights": None}, r"pass weights, such as weights=\[0.01"),
        ({"weights": []}, "weights is empty"),
        ({"weights": 5.0}, r"weights is 5.0; pass a list, such as weights=\[5.0\]"),
        ({"methods": "kl"}, r"methods is 'kl'; pass a list"),
        ({"alphas": 0.5}, r"alphas is 0.5; pass a list"),
        ({"weights": [0]}, "weights has 0; pass positive numbers"),
        ({"weights": ["ten"]}, "weights has 'ten'"),
        ({"alphas": [2]}, "alpha is 2"),
        ({"alphas": [0]}, "none above 0"),
        ({"spuriosity": "backgroud"}, "unknown spuriosity pool"),
    ],
    ids=str,
)
def test_what_cannot_be_tuned_is_refused_before_the_first_forward(arguments, match, clip, processor, settings):
    clip.forward = None
    data = {"train_dataset": TRAIN, "eval_dataset": VALIDATION, "processing_class": processor}
    with pytest.raises(ValueError, match=match):
        tune(clip, **{"args": settings(), **data, "methods": ["kl"], "weights": [1], **arguments})


def test_other_folders_and_groups_that_are_not_there_are_refused(clip, processor, settings, tmp_path):
    with pytest.raises(ValueError, match="select_by='worst_group' needs groups"):
        tune(clip, settings(group_column=None), TRAIN, VALIDATION, select_by="worst_group")
    with pytest.raises(ValueError, match="test has no column 'group'"):
        tune(clip, settings(), TRAIN, VALIDATION, test_dataset=TEST.rename_column("group", "place"), methods=["FLYP"])
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"no tuning\.json to continue from"):
        tuned(settings())
