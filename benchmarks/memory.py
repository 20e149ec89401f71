"""Peak memory of a training step, each in a process of its own: `python -m benchmarks.memory BATCH [CHUNK]`."""

import resource
import subprocess
import sys

import torch


def peak_gib(batch_size: int, mini_batch_size: int | None) -> float:
    """Peak memory of two steps at ViT-B/32 in GiB, weights, gradients and optimiser included."""
    arguments = [str(batch_size), *([] if mini_batch_size is None else [str(mini_batch_size)])]
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _measure(batch_size: int, mini_batch_size: int | None) -> float:
    from benchmarks.setup import make_scene
    from benchmarks.steps import our_step

    scene = make_scene("ViT-B/32", num_classes=100, num_images=batch_size)
    settings = {"reference_cache": "full", "per_device_eval_batch_size": 32, "mini_batch_size": mini_batch_size}
    with our_step(scene, batch_size, **settings) as step:
        # The second step has the optimiser's state in memory.
        step()
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    sizes = [int(argument) for argument in sys.argv[1:]]
    print(_measure(sizes[0], sizes[1] if len(sizes) > 1 else None))
