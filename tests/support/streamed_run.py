"""Runs on uneven shards of every kind, whole and interrupted, for as many processes as there are.

A script: `streamed_run.py FOLDER WORKERS`. It writes `KIND-RANK.json`: the samples of every batch of a process, and
whether the weights of the resumed run are those of the whole one.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoProcessor, CLIPModel, TrainerCallback

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.data.shards import read_parquet, read_webdataset
from starft_hf.utils.collectives import rank, world_size
from tests.support.launch import end_quietly
from tests.support.scenarios import world_size_of_launch
from tests.support.tiny import CLASS_NAMES, TINY_CLIP


# 20 rows in batches of 4: 5 steps are a pass. Neither the shards nor their rows can be divided by 2 x 2.
SIZES = (9, 8, 3)
BATCH, STEPS, STOP = 4, 10, 7


class CutAt(TrainerCallback):
    """Saves at a step and ends the run there."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= state.global_step == self.step
        control.should_training_stop |= state.global_step == self.step


def shards(folder, kind):
    read = {"parquet": read_parquet, "webdataset": read_webdataset}[kind]
    suffix = {"parquet": "parquet", "webdataset": "tar"}[kind]
    paths = sorted(map(str, folder.glob(f"*.{suffix}")))
    return read({"train": paths}, streaming=True).splits["train"]


def trained(folder, dataset, workers, *callbacks, resume=False):
    """A trainer that has trained, and the samples of every batch."""
    args = StarFTConfig(
        output_dir=str(folder / "output"),
        reference_cache_dir=str(folder / "features"),
        per_device_train_batch_size=BATCH // world_size_of_launch(),
        max_steps=STEPS,
        learning_rate=1e-3,
        class_names=sorted(CLASS_NAMES),
        dataloader_num_workers=workers,
        shuffle_buffer_size=6,
        save_strategy="steps",
        save_steps=100,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    trainer = StarFTTrainer(
        CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float64),
        args,
        dataset,
        processing_class=AutoProcessor.from_pretrained(TINY_CLIP),
        callbacks=list(callbacks),
    )
    seen, compute = [], trainer.compute_loss

    def recorded(model, inputs, **rest):
        seen.append(inputs["sample_index"].tolist())
        return compute(model, inputs, **rest)

    trainer.compute_loss = recorded
    trainer.train(resume_from_checkpoint=resume)
    return trainer, seen


def run(folder, kind, workers):
    """What `trained` gives for the whole run, and whether a resumed one gives the same."""
    whole, seen = trained(folder / "whole", shards(folder, kind), workers)
    trained(folder / "cut", shards(folder, kind), workers, CutAt(STOP))
    resumed, rest = trained(folder / "cut", shards(folder, kind), workers, resume=True)
    weights = resumed.model.state_dict()
    same = all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())
    return {
        "seen": seen,
        "rest": rest,
        "same": same,
        "losses": [step["loss"] for step in whole.state.log_history[:-1]],
    }


if __name__ == "__main__":
    target, workers = Path(sys.argv[1]), int(sys.argv[2])
    for kind in ("webdataset", "parquet"):
        outcome = run(target / kind, kind, workers)
        (target / f"{kind}-{rank()}.json").write_text(json.dumps({**outcome, "processes": world_size()}))
    end_quietly()
