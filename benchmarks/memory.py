"""Peak memory of a training step, each in a process of its own: `python -m benchmarks.memory SETTINGS`."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch


def peak_gib(batch_size: int, **settings: Any) -> float:
    """Peak memory of a step at ViT-B/32 in GiB, weights, gradients and optimiser included."""
    argument = json.dumps({"batch_size": batch_size, **settings})
    command = [sys.executable, "-m", "benchmarks.memory", argument]
    # On CPUs, what is freed goes back at once: otherwise the figure is that of the allocator's fragments.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
    return float(done.stdout.split()[-1])


def _measure(batch_size: int, **settings: Any) -> float:
    from benchmarks.setup import make_scene
    from benchmarks.steps import our_step

    scene = make_scene("ViT-B/32", num_classes=100, num_images=32)
    # Over and over the same pictures: a data set of files would not be in memory either.
    scene = replace(scene, dataset=scene.dataset.select(index % 32 for index in range(batch_size)))
    with our_step(scene, batch_size, reference_cache="full", per_device_eval_batch_size=32, **settings) as step:
        # So that the optimiser's state is in memory, as from the second step on. An adapter has its own.
        if "peft_config" in settings:
            step()
        else:
            _make_state(scene.optimizer)
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage: there, a process starts with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    print(_measure(**json.loads(sys.argv[1])))
