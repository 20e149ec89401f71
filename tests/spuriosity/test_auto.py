"""`spuriosity="auto"`: what it finds, what it leaves alone, and that a resumed run has the same pool."""

import json
import logging

import pytest
import torch

from starft_hf import SpuriosityPool, StarFTTrainer
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, UNRELATED_TEMPLATES, make_split
from starft_hf.spuriosity import auto
from tests.support import auto_in_processes
from tests.support.launch import torchrun
from tests.support.world import PLANTED


@pytest.fixture
def candidates(tmp_path):
    path = tmp_path / "candidates.json"
    SpuriosityPool([*BACKGROUND_TEMPLATES, *UNRELATED_TEMPLATES], name="world").save(path)
    return str(path)


@pytest.fixture
def make(config, candidates):
    def trainer(dataset=None, spuriosity="auto", **settings):
        settings = {"discovery_pool": candidates, "learning_rate": 1e-4} | settings
        dataset = make_split("train", size=240) if dataset is None else dataset
        return StarFTTrainer(MODEL_FOLDER, config(**settings), dataset, spuriosity=spuriosity)

    return trainer


@pytest.fixture
def no_discovery(monkeypatch):
    def forbid():
        monkeypatch.setattr(auto, "discover", lambda *args, **kwargs: pytest.fail("looked again"))

    return forbid


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "base_loss" in entry]


def test_it_trains_with_what_goes_together_with_the_labels(make, caplog):
    trainer = make(save_strategy="no")
    assert set(trainer.bank.pool) == PLANTED
    message = next(record.getMessage() for record in caplog.records if "spuriosity='auto'" in record.getMessage())
    assert "searched 240 images" in message
    assert "6 templates of the pool 'world': " in message
    assert any(f"{name}: on the water +0." in message for name in ("square", "star", "ring"))
    trainer.train()
    # The run is the one with that pool, so nothing random has been touched.
    torch.manual_seed(0)
    by_hand = make(spuriosity=trainer.bank.pool)
    by_hand.train()
    assert losses(trainer) == losses(by_hand)
    trainer.save_model()
    with open(f"{trainer.args.output_dir}/starft.json") as file:
        record = json.load(file)
    assert {entry["template"] for entry in record["pool"]["templates"]} == PLANTED
    assert "discovery_pool" not in record["config"]


def test_generators_are_left_alone(make):
    torch.manual_seed(5)
    make(spuriosity=list(BACKGROUND_TEMPLATES))
    expected = torch.rand(1)
    torch.manual_seed(5)
    make(dataloader_num_workers=1)
    assert torch.rand(1) == expected


def test_a_resumed_run_takes_the_pool_of_the_run(make, no_discovery):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make(**settings)
    whole.train()
    no_discovery()
    resumed = make(**settings)
    assert resumed.bank.pool == whole.bank.pool
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert losses(resumed)[-2:] == losses(whole)[-2:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_other_data_and_other_settings_are_looked_at_anew(make, tmp_path):
    saving = {"save_strategy": "steps"}
    first = make(**saving)
    file = tmp_path / "output" / "starft_pool.json"
    key = SpuriosityPool.load(file).metadata["key"]
    assert set(SpuriosityPool.load(file)) == set(first.bank.pool)
    for change in ({"seed": 3}, {"discovery_samples": 100}, {"dataset": make_split("train", seed=2, size=240)}):
        make(**saving, **change)
        assert SpuriosityPool.load(file).metadata["key"] != key
    file.write_text("{")
    assert set(make(**saving).bank.pool) == PLANTED


def test_a_pool_of_the_users_own_is_not_overwritten(make, tmp_path, caplog):
    file = tmp_path / "output" / "starft_pool.json"
    SpuriosityPool(["{} in the snow."]).save(file)
    assert set(make(save_strategy="steps").bank.pool) == PLANTED
    assert list(SpuriosityPool.load(file)) == ["{} in the snow."]
    assert "is not overwritten" in caplog.text


def test_where_nothing_is_found_all_understood_candidates_are_used(make, tmp_path, caplog):
    trainer = make(make_split("train", size=240, correlation=0.5))
    assert len(trainer.bank.pool) == 30
    assert "trains with all 30 candidates of the pool 'world': nothing in the sample" in caplog.text
    SpuriosityPool([*BACKGROUND_TEMPLATES, "{} under green neon light."], name="partly").save(tmp_path / "partly.json")
    trainer = make(make_split("train", size=240, correlation=0.5), discovery_pool=str(tmp_path / "partly.json"))
    assert set(trainer.bank.pool) == set(BACKGROUND_TEMPLATES)
    assert "trains with all 15 candidates of the pool 'partly': nothing in the sample" in caplog.text


def test_only_a_sample_is_looked_at_and_of_a_stream_the_beginning(make, caplog):
    caplog.set_level(logging.WARNING)
    make(discovery_samples=200)
    make(make_split("train", size=240).to_iterable_dataset(), discovery_samples=210)
    assert "searched 200 images" in caplog.text
    assert "searched 210 images" in caplog.text


def test_what_is_found_for_some_classes_only_does_not_leave_others_without(make, tmp_path, caplog):
    classes = [["star", "ring", "square"] if "on the water" in name else ["circle"] for name in BACKGROUND_TEMPLATES]
    pool = SpuriosityPool([*BACKGROUND_TEMPLATES, "{}."], classes=[*classes, None])
    pool.save(tmp_path / "restricted.json")
    trainer = make(discovery_pool=str(tmp_path / "restricted.json"))
    assert trainer.bank.pool == pool
    assert "others would have no template" in caplog.text


def test_bad_input_is_refused_before_a_model_is_loaded(config, monkeypatch):
    monkeypatch.setattr("starft_hf.training.setup.load_model", lambda model: pytest.fail("loaded a model"))
    train = make_split("train", size=24)
    captions = train.remove_columns("label").rename_column("group", "note")
    args = config(regularizer="kl", caption_column="note")
    with pytest.raises(ValueError, match="train_dataset has no labels with class names"):
        StarFTTrainer("some/model", args, captions, spuriosity="auto")
    args = config(discovery_pool="textures")
    with pytest.raises(ValueError, match="Did you mean 'texture'"):
        StarFTTrainer("some/model", args, train, spuriosity="auto")
    with pytest.raises(ValueError, match="discovery_samples is 0"):
        config(discovery_samples=0)


@pytest.mark.slow
def test_processes_find_the_same_together(candidates, tmp_path):
    done = torchrun(2, auto_in_processes.__file__, tmp_path / "two", candidates)
    assert done.returncode == 0, done.stderr[-6000:]
    pools = [SpuriosityPool.load(tmp_path / "two" / f"{rank}.json") for rank in (0, 1)]
    assert set(pools[0]) == set(pools[1]) == PLANTED
    assert pools[0].metadata == pools[1].metadata
    auto_in_processes.run(tmp_path / "one", candidates)
    alone = SpuriosityPool.load(tmp_path / "one" / "0.json")
    assert alone == pools[0]
    assert done.stderr.count("spuriosity='auto' searched") == 1
