"""What adapters and several processes cost: `python -m benchmarks.adapters`."""

import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from benchmarks.memory import peak_gib
from benchmarks.processes import KEEPS_MEMORY, RETURNS_MEMORY, in_fresh_process
from benchmarks.ranks import seconds_per_step
from benchmarks.setup import make_scene
from benchmarks.steps import our_step, seconds_in_turn


FOLDER = Path(__file__).parent
BATCH_SIZE = 32
SETTINGS: dict[str, dict[str, Any]] = {"full fine-tuning": {}, "LoRA": {"peft_config": "lora"}}


def measure_adapter(repetitions: int = 2) -> dict[str, float]:
    """Median seconds of a step of full fine-tuning and of one with LoRA, taken in turn."""
    with ExitStack() as stack:
        steps = {
            name: stack.enter_context(
                our_step(make_scene("ViT-B/32", 100, BATCH_SIZE), BATCH_SIZE, reference_cache="full", **settings)
            )
            for name, settings in SETTINGS.items()
        }
        seconds = seconds_in_turn(steps, repetitions)
    return {name: statistics.median(times) for name, times in seconds.items()}


def as_markdown() -> str:
    """Measure, for people."""
    seconds = in_fresh_process(KEEPS_MEMORY, measure_adapter)
    full, lora = (in_fresh_process(RETURNS_MEMORY, peak_gib, BATCH_SIZE, **settings) for settings in SETTINGS.values())
    one, two = (seconds_per_step(processes) for processes in (1, 2))
    step, adapted = seconds["full fine-tuning"], seconds["LoRA"]
    return "\n".join(
        [
            "# Adapters and processes",
            "",
            f"By `python -m benchmarks.adapters`, on {torch.get_num_threads()} CPU cores; ViT-B/32 with random "
            f"weights, batch {BATCH_SIZE},",
            "full cache, float32.",
            "",
            "| | of full fine-tuning | full fine-tuning | LoRA |",
            "| --- | ---: | ---: | ---: |",
            f"| A step | {adapted / step:.2f} | {step:.2f} s | {adapted:.2f} s |",
            f"| Peak memory | {lora / full:.2f} | {full:.2f} GiB | {lora:.2f} GiB |",
            "",
            f"Two processes with half the cores and half the batch each take {two / one:.2f} of one with all of both "
            f"({two:.2f} s against",
            f"{one:.2f} s).",
            "",
        ]
    )


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    text = as_markdown()
    (FOLDER / "ADAPTERS.md").write_text(text)
    print(text)
