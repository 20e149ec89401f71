"""The component that finds, writes and reads checkpoints, without a trainer."""

import os
import shutil
from pathlib import Path

import pytest
from transformers import TrainerState

from starft_hf import CheckpointError
from starft_hf.training.checkpointing.checkpointer import Checkpointer
from starft_hf.training.checkpointing.files import MARK, flaw_of, read_content
from tests.support.disk import recorded


class Run:
    """Stands for a trainer: settings, run settings, and checkpoints of two files."""

    def __init__(self, args, **settings):
        self.args = args
        self.settings = {"model": "abc", "seed": 0} | settings
        self.checkpointer = Checkpointer()
        self.computed, self.best = 0, None
        self.start()

    def run_settings(self):
        self.computed += 1
        return self.settings

    def start(self):
        self.checkpointer.start(self.args, self.run_settings)

    def find(self, wanted=True):
        return self.checkpointer.find(self.args, wanted, self.run_settings)

    def write(self, step, save=lambda folder: None):
        state = TrainerState(global_step=step, best_model_checkpoint=self.best)
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"

        def everything():
            state.save_to_json(str(folder / "trainer_state.json"))
            (folder / "weights").write_bytes(bytes(step))
            save(folder)

        more = {"losses": step}
        self.checkpointer.write(self.args, folder, everything, state, lambda folder: more, self.run_settings)
        return folder


@pytest.fixture
def make(config, tmp_path):
    def build(settings=None, **changes):
        args = config(output_dir=str(tmp_path), save_strategy="steps", save_steps=1, **changes)
        return Run(args, **settings or {})

    return build


def test_what_is_written_is_found_and_verified(make):
    run = make()
    assert run.find() is None
    run.write(1)
    last = run.write(2)
    assert run.find() == last
    content = read_content(last)
    assert (content["step"], content["losses"], content["identity"]) == (2, 2, {"model": "abc", "seed": 0})
    (last / "weights").write_bytes(b"??")
    assert "changed" in flaw_of(last)
    assert run.find().name == "checkpoint-1"
    with pytest.raises(CheckpointError, match=r"cannot be resumed from: weights has changed.*valid.*checkpoint-1"):
        run.find(last)


def test_a_checkpoint_of_other_settings_is_refused_or_warned_of(make, caplog):
    folder = make().write(1)
    with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
        make({"seed": 1}).find()
    assert make({"seed": 1}, ignore_mismatched_settings=True).find() == folder
    assert "seed was 0 and is 1" in caplog.text


def test_it_is_published_and_older_ones_are_removed_once_it_is_valid(make, tmp_path):
    run = make(save_total_limit=1)
    seen = []

    def publish(folder):
        seen.append((flaw_of(folder), (tmp_path / "checkpoint-1").exists()))

    def save(folder):
        run.checkpointer.once_valid(publish, folder)
        assert (folder / MARK).exists()
        assert seen == []

    run.write(1)
    run.write(2, save)
    assert seen == [(None, True)]
    assert not (tmp_path / "checkpoint-1").exists()
    assert run.args.save_total_limit == 1
    run.checkpointer.once_valid(publish, tmp_path / "checkpoint-2")
    assert len(seen) == 2


def test_one_that_cannot_be_written_leaves_nothing_and_is_not_published(make, tmp_path):
    run, published = make(save_total_limit=2), []
    first = run.write(1)

    def fail(folder):
        run.checkpointer.once_valid(published.append, folder)
        raise OSError("No space left on device")

    with pytest.raises(CheckpointError, match=r"could not be written.*last valid checkpoint is .*checkpoint-1"):
        run.write(2, fail)
    assert not (tmp_path / "checkpoint-2").exists()
    assert run.args.save_total_limit == 2
    assert run.find() == first
    run.write(2)
    assert published == []
    run.checkpointer.once_valid(published.append, first)
    assert published == [first]


def test_flawed_ones_are_kept_out_of_rotation(make, tmp_path):
    run = make()
    run.write(1)
    damaged = run.write(2)
    (damaged / "weights").unlink()
    unfinished = run.write(3)
    (unfinished / MARK).write_text("")
    assert run.find() == tmp_path / "checkpoint-1"
    run.checkpointer.remove_flawed(run.args)
    names = sorted(path.name for path in tmp_path.iterdir() if "checkpoint" in path.name)
    assert names == ["checkpoint-1", "damaged-checkpoint-2"]


def test_all_of_a_checkpoint_is_on_the_disk_before_an_older_one_is_removed(make, tmp_path, monkeypatch):
    """Its content, its list, its folders and their names, and that it is not marked as incomplete any more."""
    run = make(save_total_limit=1)
    run.write(1)
    calls = recorded(monkeypatch)

    def save(folder):
        (folder / "shards").mkdir()
        (folder / "shards" / "0").write_bytes(b"0")

    run.write(2, save)
    listed = calls.index(("fsync", next(name for call, *names in calls for name in names if "starft_ch" in name)))
    unmarked = calls.index(("unlink", MARK))
    removed = next(place for place, call in enumerate(calls) if call == ("unlink", "weights"))
    content = {("fsync", name) for name in ("weights", "trainer_state.json", "0", "shards", "checkpoint-2", MARK)}
    assert content <= set(calls[:unmarked])
    assert listed < unmarked
    assert {("fsync", "checkpoint-2"), ("fsync", tmp_path.name)} <= set(calls[unmarked:removed])


def test_rotation_goes_by_steps_and_not_by_clocks(make, tmp_path):
    run = make(save_total_limit=2)
    os.utime(run.write(1), (4e9, 4e9))
    for step in (2, 3):
        run.write(step)
    assert left(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_rotation_starts_with_what_an_earlier_run_has_left(make, tmp_path):
    make().write(80)
    make().write(90)
    run = make(save_total_limit=2)
    run.write(1)
    assert left(tmp_path) == ["checkpoint-1", "checkpoint-90"]
    run.write(2)
    assert left(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_the_best_checkpoint_stays_wherever_it_was_written(make, tmp_path):
    run = make(save_total_limit=1)
    run.best = "C:\\elsewhere\\checkpoint-1"
    for step in (1, 2, 3):
        run.write(step)
    assert left(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def end(run, best):
    with run.checkpointer.ending(run.args, TrainerState(best_model_checkpoint=best)):
        assert run.args.save_total_limit is None


REMOVALS = {
    "rotated": lambda run: run.write(1),
    "written anew": lambda run: run.write(8),
    "unfinished": lambda run: run.checkpointer.remove_flawed(run.args),
    "not the best": lambda run: end(run, "checkpoint-1"),
}


@pytest.mark.parametrize("what", REMOVALS)
def test_a_removal_that_is_interrupted_leaves_nothing_to_resume_from(make, tmp_path, monkeypatch, what):
    """Without its list, what is left of a checkpoint would pass for another trainer's."""
    run = make(save_total_limit=1)
    late = run.write(8)
    if what == "not the best":
        (tmp_path / "checkpoint-1").mkdir()
    elif what != "rotated":
        (late / MARK).write_text("")
        assert run.find() is None

    def half(path, *args, **kwargs):
        for name in (MARK, "starft_checkpoint.json", "weights"):
            (Path(path) / name).unlink(missing_ok=True)
        if Path(path).is_dir():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            REMOVALS[what](run)
    expected = ["checkpoint-1"] if what == "rotated" else []
    assert run.find() == (tmp_path / "checkpoint-1" if expected else None)
    run.checkpointer.remove_flawed(run.args)
    assert left(tmp_path) == expected
    assert run.args.save_total_limit == 1


def test_a_rotation_that_was_not_reached_is_made_up_for(make, tmp_path):
    """Of a run that resumes at its end, there is no later one."""
    run = make()
    for run.best, step in ((None, 1), ("checkpoint-1", 2), ("checkpoint-1", 3), ("checkpoint-1", 4)):
        run.write(step)
    run = make(save_total_limit=2)
    run.find(tmp_path / "checkpoint-3")
    run.checkpointer.remove_flawed(run.args)
    assert len(left(tmp_path)) == 4
    run.find()
    run.checkpointer.remove_flawed(run.args)
    assert left(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_the_best_checkpoint_is_left_alone_in_the_end(make, tmp_path):
    run = make(save_total_limit=1)
    for best in ("checkpoint-1", "elsewhere/checkpoint-9"):
        run.best = "checkpoint-1"
        for step in (1, 2):
            run.write(step)
        end(run, best)
        assert left(tmp_path) == (["checkpoint-1"] if best == run.best else ["checkpoint-1", "checkpoint-2"])


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_run_settings_are_computed_once_per_training(make):
    run = make()
    run.write(1)
    run.find()
    run.write(2)
    assert run.computed == 1
    run.start()
    assert run.computed == 2


def test_one_that_a_callback_asks_for_can_be_resumed_from(make):
    run = make()
    run.args.save_strategy = "no"
    run.start()
    folder = run.write(1)
    assert read_content(folder)["identity"] == run.settings
    assert run.find() == folder
