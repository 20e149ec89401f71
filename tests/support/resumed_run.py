"""A run that is killed, stopped or has no room, and its command again: `resumed_run.py FOLDER [SETTINGS] [MOMENT]`.

It keeps the embeddings of the reference, an average of the weights and one checkpoint, evaluates, and ends with its
weights in `output/model.safetensors`. A moment is the place in the code where it kills itself.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel, TrainerCallback

from starft_hf import ExponentialAverageCallback, StarFTConfig, StarFTTrainer
from starft_hf.reference import store
from starft_hf.utils.hashing import tensors_digest
from tests.support.tiny import TINY_CLIP, make_dataset


def make_trainer(folder, *, callbacks=(), peft_config=None, **settings):
    """The trainer of the run, without what it prints."""
    args = StarFTConfig(
        **{
            "output_dir": str(folder / "output"),
            "reference_cache_dir": str(folder / "features"),
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "reg_weight": 5.0,
            "crop_scale": None,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 2,
            "metric_for_best_model": "eval_worst_group_accuracy",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "group_column": "group",
            **settings,
        }
    )
    return StarFTTrainer(
        CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32),
        args,
        make_dataset(24),
        make_dataset(12, seed=5),
        processing_class=AutoProcessor.from_pretrained(TINY_CLIP),
        spuriosity=["{} in the snow.", "{} at night.", "{} on a beach."],
        peft_config=peft_config,
        callbacks=[ExponentialAverageCallback(0.7), *callbacks],
    )


def run(folder, settings=None, moment=None):
    """What a user's script does, the same every time."""
    folder = Path(folder)
    trainer = make_trainer(folder, **(settings or {}))
    if moment is not None:
        MOMENTS[moment](trainer)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()


def outcome(folder):
    """A key of the weights of the model and of their average, and the losses, of a run that has ended."""
    last = max((Path(folder) / "output").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = [Path(folder) / "output" / "model.safetensors", last / "model.safetensors", last / "ema.safetensors"]
    # Of the tensors: the metadata of a file has no order.
    keys = [tensors_digest(load_file(file)) for file in files]
    state = json.loads((last / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    measured = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    return {"keys": keys, "losses": losses, "evaluations": measured, "best": state["best_metric"], "last": last.name}


# Moments


def kill():
    """End this process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def _while_building_the_cache(trainer):
    save_file = store.save_file

    def half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        kill()

    store.save_file = half


class KillInStep(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 3:
            kill()


def _while_training(trainer):
    trainer.add_callback(KillInStep())


def _while_saving(trainer):
    save = trainer._save_optimizer_and_scheduler

    def killed(output_dir):
        if output_dir.endswith("checkpoint-4"):
            kill()
        save(output_dir)

    trainer._save_optimizer_and_scheduler = killed


def _while_evaluating(trainer):
    predict = trainer.prediction_step

    def killed(*args, **kwargs):
        if trainer.state.global_step == 4:
            kill()
        return predict(*args, **kwargs)

    trainer.prediction_step = killed


def _while_rotating(trainer):
    rmtree = shutil.rmtree

    def half(path, *args, **kwargs):
        if "checkpoint-2" in str(path):
            (Path(path) / "optimizer.pt").unlink()
            kill()
        rmtree(path, *args, **kwargs)

    shutil.rmtree = half


MOMENTS = {
    "building the cache": _while_building_the_cache,
    "training": _while_training,
    "saving": _while_saving,
    "evaluating": _while_evaluating,
    "rotating": _while_rotating,
}


def in_child(folder, settings=None, moment=None):
    """Start the run in a process that need not import anything anew; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(str(Path(folder).with_suffix(".log")), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(folder, settings, moment)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else None, *sys.argv[3:])
