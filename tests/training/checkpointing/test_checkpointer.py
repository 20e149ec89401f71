"""The component that finds, writes and reads checkpoints, without a trainer."""

import json

import pytest
from transformers import TrainerState

from starft_hf import CheckpointError
from starft_hf.training.checkpointing.checkpointer import Checkpointer
from starft_hf.training.checkpointing.files import MARK, flaw_of, read_content


@pytest.fixture
def make(config, tmp_path):
    """Makes a checkpointer of a run with some settings, and a function that writes its checkpoint at a step."""

    def build(settings=None, **changes):
        args = config(output_dir=str(tmp_path), save_strategy="steps", save_steps=1, **changes)
        checkpointer = Checkpointer(args, lambda: {"model": "abc", "seed": 0} | (settings or {}))

        def write(step, save=lambda folder: None):
            state = TrainerState(global_step=step)
            folder = tmp_path / f"checkpoint-{step}"

            def everything():
                state.save_to_json(str(folder / "trainer_state.json"))
                (folder / "weights").write_bytes(bytes(step))
                save(folder)

            checkpointer.write(folder, everything, state, lambda folder: {"losses": step})
            return folder

        return checkpointer, write

    return build


def test_what_is_written_is_found_and_verified(make):
    checkpointer, write = make()
    assert checkpointer.find(True) is None
    write(1)
    last = write(2)
    assert checkpointer.find(True) == last
    content = read_content(last)
    assert (content["step"], content["losses"], content["identity"]) == (2, 2, {"model": "abc", "seed": 0})
    (last / "weights").write_bytes(b"??")
    assert "changed" in flaw_of(last)
    assert checkpointer.find(True).name == "checkpoint-1"
    with pytest.raises(CheckpointError, match=r"cannot be resumed from: weights has changed.*valid.*checkpoint-1"):
        checkpointer.find(last)


def test_a_checkpoint_of_other_settings_is_refused_or_warned_of(make, caplog):
    folder = make()[1](1)
    with pytest.raises(CheckpointError, match="seed was 0 and is 1"):
        make({"seed": 1})[0].find(True)
    assert make({"seed": 1}, ignore_mismatched_settings=True)[0].find(True) == folder
    assert "seed was 0 and is 1" in caplog.text


def test_it_is_published_and_older_ones_are_removed_once_it_is_valid(make, tmp_path):
    checkpointer, write = make(save_total_limit=1)
    seen = []

    def publish(folder):
        seen.append((flaw_of(folder), (tmp_path / "checkpoint-1").exists()))

    def save(folder):
        checkpointer.once_valid(publish, folder)
        assert (folder / MARK).exists()
        assert seen == []

    write(1)
    write(2, save)
    assert seen == [(None, True)]
    assert not (tmp_path / "checkpoint-1").exists()
    assert checkpointer.args.save_total_limit == 1
    checkpointer.once_valid(publish, tmp_path / "checkpoint-2")
    assert len(seen) == 2


def test_one_that_cannot_be_written_leaves_nothing_and_is_not_published(make, tmp_path):
    checkpointer, write = make()
    first, published = write(1), []

    def fail(folder):
        checkpointer.once_valid(published.append, folder)
        raise OSError("No space left on device")

    with pytest.raises(CheckpointError, match=r"could not be written.*last valid checkpoint is .*checkpoint-1"):
        write(2, fail)
    assert not (tmp_path / "checkpoint-2").exists()
    assert published == []
    assert checkpointer.find(True) == first
    write(2)
    assert published == []


def test_starting_moves_flawed_ones_out_of_the_way(make, tmp_path):
    checkpointer, write = make()
    write(1)
    damaged = write(2)
    (damaged / "weights").unlink()
    unfinished = write(3)
    (unfinished / MARK).write_text("")
    assert checkpointer.start(True) == str(tmp_path / "checkpoint-1")
    names = sorted(path.name for path in tmp_path.iterdir() if "checkpoint" in path.name)
    assert names == ["checkpoint-1", "damaged-checkpoint-2"]


def test_settings_are_computed_once_per_training(make, tmp_path):
    checkpointer, write = make()
    calls = []
    checkpointer._compute_settings = lambda: calls.append(1) or {"model": "abc"}
    checkpointer.start(None)
    write(1)
    write(2)
    assert len(calls) == 1
    checkpointer.start(None)
    assert len(calls) == 2
    json.dumps(read_content(tmp_path / "checkpoint-2"))
