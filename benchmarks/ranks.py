"""A step of one process with all cores against two with half of them each, for the same global batch.

Also a script for torchrun: `benchmarks/ranks.py`.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.processes import KEEPS_MEMORY


GLOBAL_BATCH = 32


def seconds_per_step(processes: int, repetitions: int = 3) -> float:
    """Median seconds of a step of the global batch at ViT-B/32."""
    cores = os.cpu_count() or 1
    root = Path(__file__).parents[1]
    settings = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        "PYTHONPATH": str(root),
        **KEEPS_MEMORY,
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(Path(__file__)), str(repetitions)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
    return float(next(line for line in done.stdout.splitlines() if line.startswith("seconds ")).split()[1])


def main(repetitions: int) -> None:
    """What every process runs."""
    from benchmarks.setup import make_scene
    from benchmarks.steps import our_step
    from starft_hf.utils.collectives import rank, world_size

    processes = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    scene = make_scene("ViT-B/32", num_classes=100, num_images=GLOBAL_BATCH)
    with our_step(scene, GLOBAL_BATCH // processes, reference_cache="full") as step:
        assert world_size() == processes
        times = []
        for _ in range(repetitions + 1):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    if rank() == 0:
        print("seconds", statistics.median(times[1:]))


if __name__ == "__main__":
    from starft_hf.utils.collectives import destroy_process_group

    main(int(sys.argv[1]))
    destroy_process_group()
