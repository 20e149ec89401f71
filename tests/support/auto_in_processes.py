"""A script that sets up a run with `spuriosity="auto"`: `auto_in_processes.py FOLDER CANDIDATES`."""

import sys
from pathlib import Path

from starft_hf import StarFTConfig, StarFTTrainer
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import make_split
from starft_hf.utils.collectives import rank
from tests.support.launch import end_quietly


def run(folder, candidates):
    """Train a step and write the pool of every process."""
    folder = Path(folder)
    args = StarFTConfig(
        output_dir=str(folder / "output"),
        reference_cache_dir=str(folder / "features"),
        per_device_train_batch_size=8,
        max_steps=1,
        discovery_pool=str(candidates),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
    )
    trainer = StarFTTrainer(MODEL_FOLDER, args, make_split("train", size=241), spuriosity="auto")
    trainer.train()
    trainer.bank.pool.save(folder / f"{rank()}.json")


if __name__ == "__main__":
    run(*sys.argv[1:])
    end_quietly()
