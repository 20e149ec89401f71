"""Peak memory of a training step."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.setup import make_scene, make_state
from benchmarks.steps import our_step


def peak_gib(batch_size: int, **settings: Any) -> float:
    """Peak memory of this process in GiB after a step at ViT-B/32; weights, gradients and optimiser included."""
    scene = make_scene("ViT-B/32", num_classes=100, num_images=32)
    with our_step(scene, batch_size, reference_cache="full", per_device_eval_batch_size=32, **settings) as step:
        # So that the optimiser's state is in memory, as from the second step on. An adapter has its own.
        if "peft_config" in settings:
            step()
        else:
            make_state(scene.optimizer)
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_of_process()


def peak_of_process() -> float:
    """The most memory that this process has had, in GiB."""
    # Not getrusage: there, a process starts with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20
