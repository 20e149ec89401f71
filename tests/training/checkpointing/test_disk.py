"""Disks without room, folders that cannot be written to, and checkpoints that are not what they were."""

import errno
import os
import re
import shutil
import subprocess

import pytest
from safetensors import SafetensorError

from starft_hf import CheckpointError
from starft_hf.training.checkpointing.files import (
    CHECKPOINT_FILE,
    MARK,
    flaw_of,
    last_valid_checkpoint,
    marked_incomplete,
)
from tests.support.disk import mounted
from tests.support.resumed_run import make_trainer, outcome


STEPS = {"eval_strategy": "no", "save_total_limit": None, "max_steps": 4, "num_train_epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with checkpoints at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, **STEPS)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.mark.skipif(os.name == "nt", reason="it has no umask")
def test_others_can_read_models_and_checkpoints_as_the_umask_says(run):
    files = [*(run / "output").glob("*.safetensors"), *(run / "output" / "checkpoint-4").glob("*.safetensors")]
    (run / "new").write_text("")
    assert {path.stat().st_mode for path in files} == {(run / "new").stat().st_mode}
    assert len(files) >= 2


@pytest.mark.parametrize(
    "room", ["9m", *(pytest.param(room, marks=pytest.mark.slow) for room in ("3m", "10m", "11m", "12m"))]
)
def test_a_full_disk_ends_the_run_and_the_last_valid_checkpoint_is_used(tmp_path, run, room):
    """At 3 MB not even the first checkpoint of 5 fits; at more, different files of later ones do not."""
    output = tmp_path / "output"
    with mounted(output, "tmpfs", f"size={room}", "-t", "tmpfs"):
        with pytest.raises(CheckpointError, match="could not be written") as error:
            make_trainer(tmp_path, save_steps=1, **STEPS).train(resume_from_checkpoint=True)
        assert re.search(r"with [0-2]\.\d MiB left on the disk", str(error.value))
        last, flaws = last_valid_checkpoint(output)
        assert flaws == []
        if last is None:
            assert "no earlier checkpoint" in str(error.value)
            assert list(output.iterdir()) == []
        else:
            assert f"the last valid checkpoint is {last}" in str(error.value)
        # Somebody makes room, and gives the same command.
        subprocess.run(["mount", "-o", "remount,size=100m", str(output)], check=True)
        again = make_trainer(tmp_path, save_steps=1, **STEPS)
        assert again.checkpoint_to_resume(True) == last
        again.train(resume_from_checkpoint=True)
        again.save_model()
        assert outcome(tmp_path)["keys"] == outcome(run)["keys"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Make room"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "Make room"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos 64 vs 0"),
            "If the disk or a quota is",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "adapter_model.safetensors"), None),
        (PermissionError(errno.EACCES, "Permission denied"), None),
        (OSError(errno.EMFILE, "Too many open files"), None),
        (RuntimeError("Some tensors share memory"), None),
    ],
)
def test_only_an_error_about_space_is_explained_so(tmp_path, error, full):
    with pytest.raises(CheckpointError) as found, marked_incomplete(tmp_path / "checkpoint-1"):
        raise error
    message = str(found.value)
    assert f"{type(error).__name__}: {error}" in message
    assert (full in message and "MiB left" in message) if full else re.search("MiB|room|disk", message) is None
    assert not (tmp_path / "checkpoint-1").exists()


@pytest.mark.parametrize("steps", [(2, 4), ()])
def test_a_disk_that_is_full_at_the_end_says_how_to_go_on(folder, monkeypatch, steps):
    def fail(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    for path in () if steps else (folder / "output").glob("checkpoint-*"):
        shutil.rmtree(path)
    trainer = make_trainer(folder, **STEPS)
    monkeypatch.setattr(trainer, "_save", fail)
    kept = "checkpoint-4 is complete. Make room, and resume with" if steps else "no checkpoint. Make room, and start"
    for output in (None, str(folder / "other")):
        with pytest.raises(CheckpointError, match=f"results in .* could not be written, with .*MiB.*{kept}") as error:
            trainer.save_model(output)
        assert (output or str(folder / "output")) in str(error.value)
    assert "os error 28" in str(error.value)


def test_a_read_only_folder_is_refused_before_anything_is_computed(tmp_path):
    with mounted(tmp_path / "disk", "tmpfs", "size=1m,ro", "-t", "tmpfs"):
        for name in (".", "new/output"):
            with pytest.raises(PermissionError, match=r"output_dir is .*, and nothing can be written to '.*disk'"):
                make_trainer(tmp_path, output_dir=str(tmp_path / "disk" / name))


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o700)
    with pytest.raises(NotADirectoryError, match=r"output_dir is '.*output', and '.*file' is a file"):
        make_trainer(tmp_path, output_dir=str(tmp_path / "file" / "output"))


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="permissions do not bind this user")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output").chmod(0o500)
    with pytest.raises(PermissionError, match="nothing can be written"):
        make_trainer(tmp_path)


@pytest.fixture
def folder(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "no optimiser": (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "no random state": (lambda path: (path / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "truncated weights": (lambda path: os.truncate(path / "model.safetensors", 100), "has 100 of"),
    "an empty state": (lambda path: os.truncate(path / "trainer_state.json", 0), "trainer_state.json has 0 of"),
    "a bit is flipped": (lambda path: flip(path / "optimizer.pt"), "optimizer.pt has changed since it was written"),
    "half a list": (lambda path: os.truncate(path / CHECKPOINT_FILE, 50), "cannot be read"),
    "killed while writing": (lambda path: (path / MARK).write_text(""), "ended while writing"),
    "nothing in it": (lambda path: [file.unlink() for file in path.iterdir()], "trainer_state.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_valid_checkpoint_is_found(folder, damage):
    inflict, reason = DAMAGES[damage]
    last = folder / "output" / "checkpoint-4"
    inflict(last)
    assert reason in flaw_of(last)
    assert last_valid_checkpoint(folder / "output")[0] == folder / "output" / "checkpoint-2"
    with pytest.raises(CheckpointError, match=f"cannot be resumed from: .*{reason}.*valid checkpoint there is .*-2"):
        make_trainer(folder, **STEPS).train(resume_from_checkpoint=str(last))


@pytest.mark.parametrize("damage", ["truncated weights", "killed while writing"])
def test_it_is_used_with_a_warning_and_the_damaged_one_goes_once_there_is_another(folder, run, damage, caplog):
    inflict, reason = DAMAGES[damage]
    inflict(folder / "output" / "checkpoint-4")
    trainer = make_trainer(folder, **STEPS)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert reason in caplog.text
    assert f"Training resumes from {folder / 'output' / 'checkpoint-2'}" in caplog.text
    assert outcome(folder) == outcome(run)
    assert sorted(path.name for path in (folder / "output").glob("*checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_without_a_good_one_training_starts_from_the_beginning(folder, run, caplog):
    for step in (2, 4):
        DAMAGES["no optimiser"][0](folder / "output" / f"checkpoint-{step}")
    trainer = make_trainer(folder, **STEPS)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert "training starts from the beginning" in caplog.text
    assert outcome(folder) == outcome(run)


ODD = [
    "[" * 100_000,
    "[]",
    "3",
    "{}",
    '{"format": "1"}',
    '{"format": 1, "files": [], "step": 1, "identity": {}}',
    "\xff",
    "",
]
ODD += ['{"format": 1, "files": {"a": 3}, "step": 1, "identity": {}}', '{"global_step": "4", "log_history": []}']
ODD += [
    '{"global_step": 4, "log_history": [], "nonsense": 1}',
    '{"format": 1, "files": {}, "step": true, "identity": {}}',
]


@pytest.mark.parametrize("name", [CHECKPOINT_FILE, "trainer_state.json"])
@pytest.mark.parametrize("content", ODD)
def test_odd_json_is_a_flaw_and_not_an_error(tmp_path, name, content):
    """As in a checkpoint of another trainer, which has no list of its files."""
    last = tmp_path / "output" / "checkpoint-4"
    last.mkdir(parents=True)
    (last / name).write_bytes(content.encode("latin-1"))
    assert name in flaw_of(last)
    assert last_valid_checkpoint(tmp_path / "output")[0] is None


def test_a_list_that_names_files_elsewhere_is_refused(folder):
    last = folder / "output" / "checkpoint-4"
    text = (last / CHECKPOINT_FILE).read_text()
    (last / CHECKPOINT_FILE).write_text(text.replace('"optimizer.pt"', '"../../secret"'))
    assert "names files outside of the folder" in flaw_of(last)


def test_the_latest_valid_checkpoint_is_never_rotated_away_before_there_is_a_later_one(tmp_path, monkeypatch):
    """With one checkpoint to keep, writing the next fails; the former is still there."""
    trainer = make_trainer(tmp_path, **STEPS | {"save_total_limit": 1})
    save = trainer._save_rng_state

    def fail(output_dir):
        save(output_dir)
        if output_dir.endswith("-4"):
            raise OSError(28, "No space left on device")

    trainer._save_rng_state = fail
    with pytest.raises(CheckpointError, match=r"checkpoint-4 could not be written, .*checkpoint is .*checkpoint-2\."):
        trainer.train()
    assert trainer.args.save_total_limit == 1
    assert last_valid_checkpoint(tmp_path / "output") == (tmp_path / "output" / "checkpoint-2", [])
