"""SIGTERM: a checkpoint, exit code 75, and the same command goes on as if nothing had been."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
from transformers import TrainerCallback

from starft_hf import TrainingInterrupted
from starft_hf.reference.live import FrozenReference
from starft_hf.training.checkpointing.files import last_valid_checkpoint
from tests.support.resumed_run import make_trainer, outcome
from tests.support.runs import SignalAt, assert_same_weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder)
    trainer.train()
    trainer.save_model()
    return outcome(folder)


@pytest.mark.parametrize(
    ("step", "settings"),
    [(0, {}), (2, {"dataloader_num_workers": 2}), (1, {})],
    ids=["middle", "end of an epoch", "where it is evaluated"],
)
def test_a_checkpoint_is_saved_and_the_run_goes_on(tmp_path, whole, step, settings):
    settings = {"save_steps": 100, **settings}
    with pytest.raises(TrainingInterrupted) as interrupted:
        make_trainer(tmp_path, callbacks=[SignalAt(step)], **settings).train(resume_from_checkpoint=True)
    assert interrupted.value.code == 75
    assert interrupted.value.checkpoint == tmp_path / "output" / f"checkpoint-{step + 1}"
    assert last_valid_checkpoint(tmp_path / "output") == (interrupted.value.checkpoint, [])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    again = make_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    assert outcome(tmp_path) == whole


def test_the_best_checkpoint_does_not_take_the_place_of_the_last(tmp_path):
    """At its end, a run that keeps one checkpoint removes the last if another is better."""
    settings = {"save_steps": 2, "save_total_limit": 1, "load_best_model_at_end": True}
    with pytest.raises(TrainingInterrupted):
        make_trainer(tmp_path, callbacks=[SignalAt(4)], **settings).train()
    assert last_valid_checkpoint(tmp_path / "output")[0].name == "checkpoint-5"


@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", "on_train_end"])
def test_what_comes_after_training_does_not_begin(tmp_path, whole, event):
    """The last step was taken already; the same command ends what is left of it."""
    heard = []

    class Hear(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            heard.append(state.global_step)

    with pytest.raises(TrainingInterrupted) as interrupted:
        make_trainer(tmp_path, callbacks=[SignalAt(6, event), Hear()]).train()
    assert heard == [6]
    assert interrupted.value.checkpoint == tmp_path / "output" / "checkpoint-6"
    again = make_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    assert outcome(tmp_path) == whole


def test_callbacks_hear_that_training_ends(tmp_path):
    heard = []

    class Hear(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            heard.append(state.global_step)

    with pytest.raises(TrainingInterrupted):
        make_trainer(tmp_path, callbacks=[SignalAt(0), Hear()]).train()
    assert heard == [1]


def test_a_handler_of_the_users_own_is_left_alone(tmp_path):
    received = []
    former = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        trainer = make_trainer(tmp_path, callbacks=[SignalAt(0)], max_steps=2)
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [1]
    assert trainer.state.global_step == 2


def test_the_setting_of_transformers_for_it_is_ours_as_well(tmp_path):
    with pytest.raises(TrainingInterrupted):
        make_trainer(tmp_path, callbacks=[SignalAt(0)], enable_jit_checkpoint=True).train()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_in_another_thread_training_goes_on_without_it(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 1


def test_an_error_with_workers_ends_the_process(tmp_path):
    """They are ended by SIGTERM then, which they leave to the main process otherwise."""

    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else") as error:
        make_trainer(tmp_path, callbacks=[Fail()], dataloader_num_workers=2, save_strategy="no").train()
    for child in multiprocessing.active_children():
        child.terminate()
        child.join(20)
        assert child.exitcode == 0
    del error


SCRIPT = """
import sys
from pathlib import Path
from tests.support.launch import end_quietly
from tests.support.resumed_run import make_trainer
from tests.support.runs import SignalAt

def run(folder, step, only):
    sizes = {"per_device_train_batch_size": 4}
    trainer = make_trainer(folder, callbacks=[SignalAt(step, only=None if only < 0 else only)], **sizes)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()

run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
end_quietly()
"""


@pytest.mark.slow
@pytest.mark.parametrize("only", [-1, 1], ids=["to all", "to the second"])
def test_several_processes_stop_together(tmp_path, only):
    """However many of them are told to, and none waits for another."""
    from tests.support.launch import torchrun

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(2, script, tmp_path, 2, only, timeout=200)
    assert done.returncode != 0
    # Once one has ended, torchrun ends the others, which may be about to.
    assert "exitcode  : 75" in done.stderr, done.stderr[-4000:]
    assert done.stderr.count("stopped by SIGTERM; the checkpoint") == 2
    assert last_valid_checkpoint(tmp_path / "output")[0].name == "checkpoint-3"
    if only == 1:
        done = torchrun(2, script, tmp_path, 100, -1, timeout=200)
        assert done.returncode == 0, done.stderr[-4000:]
        assert (tmp_path / "output" / "model.safetensors").is_file()


@pytest.mark.slow
def test_every_process_of_a_group_is_told(tmp_path):
    """As by `timeout`, Slurm or Ctrl-C's kin: the processes that load data hear it as well."""
    from tests.support.launch import ROOT
    from tests.support.scenarios import environment

    code = (
        "import os, subprocess, sys; from pathlib import Path\n"
        "from tests.support.resumed_run import make_trainer\n"
        "from tests.support.runs import SignalAt\n"
        "at = SignalAt(2)\n"
        "at.send = lambda: subprocess.run(['kill', '-TERM', '--', f'-{os.getpgid(0)}'])\n"
        "settings = {'dataloader_num_workers': 2, 'save_steps': 100}\n"
        "make_trainer(Path(sys.argv[1]), callbacks=[at], **settings).train()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 75, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert last_valid_checkpoint(tmp_path / "output")[0].name == "checkpoint-3"


@pytest.mark.parametrize("moment", ["building the cache", "evaluating at the start", "measuring what is retained"])
def test_before_the_first_step_nothing_is_waited_for(tmp_path, monkeypatch, moment):
    """There is nothing to save, but what the cache holds already; the same command is the whole run."""
    settings = {"max_steps": 2, "eval_on_start": True, "reference_cache": "full"}
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    calls = []

    def signal_at(owner, name):
        compute = getattr(owner, name)

        def computing(*args, **kwargs):
            calls.append(1)
            if len(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return compute(*args, **kwargs)

        monkeypatch.setattr(owner, name, computing)

    trainer = make_trainer(tmp_path / "cut", per_device_eval_batch_size=4, **settings)
    if moment == "building the cache":
        signal_at(FrozenReference, "embed_images")
    elif moment == "evaluating at the start":
        signal_at(trainer, "prediction_step")
    else:
        signal_at(trainer, "measure_start")
    with pytest.raises(TrainingInterrupted) as interrupted:
        trainer.train(resume_from_checkpoint=True)
    assert (interrupted.value.code, interrupted.value.checkpoint, len(calls)) == (75, None, 1)
    # The request was about that training.
    assert "eval_accuracy" in trainer.evaluate()
    again = make_trainer(tmp_path / "cut", per_device_eval_batch_size=4, **settings)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(again, whole)


@pytest.mark.parametrize(("step", "settings"), [(2, {"eval_steps": 1}), (4, {"eval_strategy": "epoch"})])
def test_a_run_that_saves_its_best_checkpoints_saves_this_one_too(tmp_path, step, settings):
    """What is saved there is decided by the evaluation, which finds no better model."""
    best = {
        "save_strategy": "best",
        "eval_steps": 1,
        "learning_rate": 0.0,
        "load_best_model_at_end": False,
        **settings,
    }
    with pytest.raises(TrainingInterrupted, match=f"the checkpoint .*checkpoint-{step + 1} was saved") as interrupted:
        make_trainer(tmp_path, callbacks=[SignalAt(step)], **best).train()
    assert last_valid_checkpoint(tmp_path / "output")[0] == interrupted.value.checkpoint
