"""A long run at a tiny size: nothing grows, nothing is left open, and old checkpoints go."""

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest
from transformers import TrainerCallback

from starft_hf import StarFTTrainer
from tests.support.tiny import make_dataset


STEPS = 2000
EVERY = 50


class Measure(TrainerCallback):
    """Resident memory in MiB and open files of the process, after every evaluation."""

    def __init__(self):
        self.process, self.steps, self.memory, self.files = psutil.Process(), [], [], []

    def on_evaluate(self, args, state, control, **kwargs):
        gc.collect()
        self.steps.append(state.global_step)
        self.memory.append(self.process.memory_info().rss / 2**20)
        self.files.append(self.process.num_fds() if hasattr(self.process, "num_fds") else self.process.num_handles())


@pytest.mark.soak
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_scale": None, "reference_cache": "full"},
        {"reference_cache": "none", "dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    ],
)
def test_memory_and_open_files_do_not_grow_and_checkpoints_are_rotated(clip, processor, config, settings):
    args = config(
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=EVERY,
        save_strategy="steps",
        save_steps=EVERY,
        save_total_limit=3,
        logging_steps=EVERY,
        learning_rate=1e-4,
        on_bad_image="skip",
        **settings,
    )
    measure = Measure()
    trainer = StarFTTrainer(
        clip, args, make_dataset(32), make_dataset(16, seed=1), processing_class=processor, callbacks=[measure]
    )
    trainer.train()
    # What is loaded once is loaded by the first quarter.
    steps, memory = (np.array(values)[len(measure.steps) // 4 :] for values in (measure.steps, measure.memory))
    slope = np.polyfit(steps, memory, 1)[0] * 1000
    print(
        f"\n{settings}: {memory[0]:.1f} to {memory[-1]:.1f} MiB, {slope:+.2f} MiB per 1,000 steps; "
        f"{min(measure.files)} to {max(measure.files)} open files"
    )
    # A batch that is kept, of 8 images of 16 x 16 pixels, would be 24 MiB per 1,000 steps.
    assert slope < 5
    # Workers that are about to end hold some, so that the number goes up and down; it must not go further up.
    half = len(measure.files) // 2
    assert max(measure.files[half:]) <= max(measure.files[:half])
    kept = {path.name for path in Path(args.output_dir).iterdir() if path.name.startswith("checkpoint-")}
    assert kept == {f"checkpoint-{step}" for step in (STEPS - 2 * EVERY, STEPS - EVERY, STEPS)}
