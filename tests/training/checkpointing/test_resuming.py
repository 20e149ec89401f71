"""A run continues from the whole of its checkpoint, and ends with the best one, wherever that is by now."""

import shutil
from pathlib import Path

import pytest

from starft_hf import CheckpointError
from tests.support.resumed_run import make_trainer
from tests.support.runs import assert_same_weights


STEPS = {"max_steps": 4, "eval_strategy": "no", "save_total_limit": None}
# Where `Trainer` reads each of them.
LOADED = {
    "trainer_state.json": "_init_training_state",
    "optimizer.pt": "_load_optimizer_and_scheduler",
    "scheduler.pt": "_load_optimizer_and_scheduler",
    "rng_state.pth": "_load_rng_state",
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, **STEPS).train()
    return folder


@pytest.mark.parametrize("name", LOADED)
def test_a_file_that_disappears_between_its_check_and_its_loading_ends_the_run(tmp_path, started, name, monkeypatch):
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "output" / "checkpoint-4")
    trainer = make_trainer(tmp_path, **STEPS)
    load = getattr(trainer, LOADED[name])

    def removed_before(*arguments):
        (tmp_path / "output" / "checkpoint-2" / name).unlink(missing_ok=True)
        return load(*arguments)

    monkeypatch.setattr(trainer, LOADED[name], removed_before)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 lost .* while it was loaded"):
        trainer.train(resume_from_checkpoint=True)
    assert not (tmp_path / "output" / "checkpoint-4").exists()


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_total_limit": 2}
BEST |= {"metric_for_best_model": "eval_accuracy", "greater_is_better": True, "max_steps": 6}


def test_the_best_checkpoint_is_found_in_a_folder_that_was_moved(tmp_path):
    trainer = make_trainer(tmp_path / "here", **BEST)
    trainer.train()
    assert trainer.state.best_global_step < 6
    best = Path(trainer.state.best_model_checkpoint).name
    # As if it had been killed after the last checkpoint.
    (tmp_path / "here").rename(tmp_path / "there")
    moved = make_trainer(tmp_path / "there", **BEST)
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "there" / "output" / best)
    assert_same_weights(moved, trainer)

    shutil.rmtree(tmp_path / "there" / "output" / best)
    with pytest.raises(CheckpointError, match=rf"{best}, is neither in .* put it back, or set load_best_model_at_end"):
        make_trainer(tmp_path / "there", **BEST).train(resume_from_checkpoint=True)


def test_after_a_run_that_resumed_at_its_end_another_may_begin(tmp_path, started):
    """From the beginning, which is not a checkpoint that lost its state."""
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    trainer = make_trainer(tmp_path, **STEPS)
    trainer.train(resume_from_checkpoint=True)
    trainer.train()
    assert trainer.state.global_step == 4
