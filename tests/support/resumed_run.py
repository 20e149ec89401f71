"""A run that is killed, stopped or has no room, and its command again: `resumed_run.py FOLDER [SETTINGS] [MOMENT]`.

It keeps the embeddings of the reference, an average of the weights and checkpoints, evaluates, and ends with its
weights in `output`. A moment is the place in the code where it sends itself a signal.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel, TrainerCallback

from starft_hf import ExponentialAverageCallback, StarFTConfig, StarFTTrainer
from starft_hf.training.checkpointing import files
from starft_hf.training.checkpointing.interruption import ended_by_sigterm
from starft_hf.utils import files as temporaries
from starft_hf.utils import store
from starft_hf.utils.hashing import tensors_digest
from tests.support.runs import without_timing
from tests.support.tiny import TINY_CLIP, make_dataset


def make_trainer(folder, *, callbacks=(), peft_config=None, iterable=False, average=True, **settings):
    """The trainer of the run, without what it prints."""
    train = make_dataset(24)
    args = StarFTConfig(
        **{
            "output_dir": str(folder / "output"),
            "reference_cache_dir": str(folder / "features"),
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "reg_weight": 5.0,
            "reg_schedule": "linear",
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
        train.to_iterable_dataset(num_shards=3) if iterable else train,
        make_dataset(12, seed=5),
        processing_class=AutoProcessor.from_pretrained(TINY_CLIP),
        spuriosity=["{} in the snow.", "{} at night.", "{} on a beach."],
        peft_config=peft_config,
        callbacks=[*([ExponentialAverageCallback(0.7)] if average else []), *callbacks],
    )


def run(folder, settings=None, moment=None, number=signal.SIGKILL):
    """What `starft train` or a user's script does, the same every time."""
    with ended_by_sigterm():
        trainer = make_trainer(Path(folder), **(settings or {}))
        if moment is not None:
            MOMENTS[moment](trainer, partial(os.kill, os.getpid(), number))
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model()


def outcome(folder):
    """Keys of all weights and averages, the losses and evaluations, and the record of a run that has ended."""
    output = Path(folder) / "output"
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    weights = [*output.glob("*.safetensors"), *last.glob("*.safetensors")]
    state = json.loads((last / "trainer_state.json").read_text())
    return {
        # Of the tensors: the metadata of a file has no order.
        "keys": {str(path.relative_to(output)): tensors_digest(load_file(path)) for path in weights},
        "log": without_timing(state["log_history"]),
        "best": [state["best_metric"], state["best_global_step"]],
        "record": json.loads((output / "starft.json").read_text()),
    }


# Moments: `stop` kills the process, or sends a signal that lets it go on for now.


def _while_building_the_cache(trainer, stop):
    save_file = store.save_file

    def half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        if "-piece-" not in path.name:
            stop()

    store.save_file = half


def _while_writing_a_piece(trainer, stop):
    save_file, written = store.save_file, []

    def half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        written.append(path)
        if "-piece-" in path.name and len(written) == 3:
            stop()

    store.save_file = half


def _while_removing_the_pieces(trainer, stop):
    remove = store.FeaturePieces.remove

    def stopped(pieces):
        stop()
        remove(pieces)

    store.FeaturePieces.remove = stopped


class StopInStep(TrainerCallback):
    def __init__(self, stop):
        self.stop = stop

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.stop()


def _while_training(trainer, stop):
    trainer.add_callback(StopInStep(stop))


def _while_saving(trainer, stop):
    save = trainer._save_optimizer_and_scheduler

    def stopped(output_dir):
        if output_dir.endswith("checkpoint-4"):
            stop()
        save(output_dir)

    trainer._save_optimizer_and_scheduler = stopped


def _before_the_mark_is_removed(trainer, stop):
    remove = files.remove_at_last

    def stopped(path):
        if path.parent.name == "checkpoint-4":
            stop()
        remove(path)

    files.remove_at_last = stopped


def _while_evaluating(trainer, stop, step=4):
    predict = trainer.prediction_step

    def stopped(*args, **kwargs):
        if trainer.state.global_step == step:
            stop()
        return predict(*args, **kwargs)

    trainer.prediction_step = stopped


def _while_rotating(trainer, stop):
    rmtree = shutil.rmtree

    def half(path, *args, **kwargs):
        if path.name.endswith("checkpoint-2") and path.is_dir():
            (path / "optimizer.pt").unlink()
            stop()
        rmtree(path, *args, **kwargs)

    shutil.rmtree = half


MOMENTS = {
    "writing a piece": _while_writing_a_piece,
    "building the cache": _while_building_the_cache,
    "removing the pieces": _while_removing_the_pieces,
    "first evaluation": partial(_while_evaluating, step=0),
    "training": _while_training,
    "saving": _while_saving,
    "before the mark is removed": _before_the_mark_is_removed,
    "evaluating": _while_evaluating,
    "rotating": _while_rotating,
}


def in_child(folder, *arguments):
    """Start the run in a process that need not import anything anew; returns its id.

    The embeddings of the reference are kept in pieces of 4 rows while they are computed, and temporary files of killed
    processes are removed at once.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        log = os.open(str(Path(folder).with_suffix(".log")), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        store.FeaturePieces.size, temporaries.ABANDONED = 4, 0.0
        run(folder, *arguments)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else None, *sys.argv[3:])
