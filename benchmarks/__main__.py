"""`python -m benchmarks`: every figure of RESULTS.md, from one run."""

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import starft_hf
from benchmarks.loading import captions_per_second, loading_seconds
from benchmarks.memory import peak_gib
from benchmarks.ranks import seconds_per_step
from benchmarks.setup import make_scene
from benchmarks.steps import GPU_VARIANTS, VARIANTS, open_step, our_step


RATIOS = (("full", "paper"), ("full", "plain"), ("full", "no regularizer"), ("text", "paper"), ("none", "paper"))
BATCH_SIZE = 32

# Model, classes, repetitions of the variants that are nearly equal; the others are so far apart that one will do.
STEPS = (("ViT-B/32", 1000, 5), ("ViT-B/32", 2, 1), ("ViT-B/16", 1000, 3), ("ViT-B/16", 2, 1))
NEARLY_EQUAL = ("full", "no regularizer")

# What is measured, images per step, settings.
MEMORY: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("", 32, {}),
    ("`mini_batch_size=32`", 512, {"mini_batch_size": 32}),
    ('`peft_config="lora"`', 32, {"peft_config": "lora"}),
)


def measure_steps(shape: str, num_classes: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of every variant's step, taken in turn so that what slows the machine down slows all of them."""
    scene = make_scene(shape, num_classes, BATCH_SIZE)
    variants = VARIANTS + GPU_VARIANTS * torch.cuda.is_available()
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    with ExitStack() as stack:
        steps = {variant: stack.enter_context(open_step(variant, scene, BATCH_SIZE)) for variant in variants}
        # The first step makes the optimiser's state, asks whether the weights have moved, and compiles what is to be
        # compiled: no part of what a run of thousands costs.
        for variant in (*NEARLY_EQUAL, *variants[len(VARIANTS) :]):
            steps[variant]()
        for repetition in range(repetitions):
            for variant in variants if repetition == 0 else NEARLY_EQUAL:
                start = time.perf_counter()
                steps[variant]()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds[variant].append(time.perf_counter() - start)
                print(f"{shape}, {num_classes} classes: {variant} {seconds[variant][-1]:.2f} s", flush=True)
    return seconds


def measure_adapter(repetitions: int = 2) -> dict[str, list[float]]:
    """Seconds of a step of full fine-tuning and of one with LoRA, in turn."""
    seconds: dict[str, list[float]] = {"full fine-tuning": [], "LoRA": []}
    with ExitStack() as stack:
        steps = {
            name: stack.enter_context(
                our_step(make_scene("ViT-B/32", 100, BATCH_SIZE), BATCH_SIZE, reference_cache="full", **settings)
            )
            for name, settings in (("full fine-tuning", {}), ("LoRA", {"peft_config": "lora"}))
        }
        for repetition in range(repetitions + 1):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if repetition:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def as_markdown(results: dict[str, Any]) -> str:
    """The results for people."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    variants = list(next(iter(results["steps"].values())))
    lines = [
        "# Benchmarks",
        "",
        f"By `make bench`, on {results['device']}; {versions}; {results['seconds']} s in all.",
        "",
        f"Random weights of real shapes, 224 x 224 pixels, batch {BATCH_SIZE}, fused AdamW, float32 unless another",
        "type is named. Steps are taken in turn; seconds are medians, ratios medians of those of the repetitions",
        "(smallest to largest in brackets).",
        "",
        "- paper: hand-written, every text at 77 tokens, nothing shared, a live reference",
        "- plain: `CLIPModel(..., return_loss=True)` at 77 tokens, no regularizer",
        "- none, text, full: `StarFTTrainer` with that `reference_cache`",
        '- no regularizer: `StarFTTrainer` with `regularizer="none"`',
        "",
        "## A training step",
        "",
        "| Model, classes | " + " | ".join(f"{variant}, s" for variant in variants) + " |",
        "| --- |" + " ---: |" * len(variants),
    ]
    for name, seconds in results["steps"].items():
        medians = " | ".join(f"{statistics.median(seconds[variant]):.2f}" for variant in variants)
        lines.append(f"| {name} | {medians} |")
    lines += ["", "| Model, classes | " + " | ".join(f"{above} / {below}" for above, below in RATIOS) + " |"]
    lines.append("| --- |" + " ---: |" * len(RATIOS))
    for name, seconds in results["steps"].items():
        cells = []
        for above, below in RATIOS:
            # Of one repetition; not all variants were repeated.
            ratios = [one / other for one, other in zip(seconds[above], seconds[below], strict=False)]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
            cells.append(f"{statistics.median(ratios):.2f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## Peak memory, ViT-B/32", "", "| Batch | | GiB | of batch 32 |"]
    lines.append("| ---: | --- | ---: | ---: |")
    base = results["memory"][0]["gib"]
    for row in results["memory"]:
        lines.append(f"| {row['batch']} | {row['what']} | {row['gib']:.2f} | {row['gib'] / base:.2f} |")
    adapter = {name: statistics.median(seconds) for name, seconds in results["adapter"].items()}
    processes = results["processes"]
    loading, captions = results["loading_seconds"], results["captions_per_second"]
    lines += [
        "",
        "## Adapters and processes, ViT-B/32",
        "",
        f"- A step with LoRA takes {adapter['LoRA'] / adapter['full fine-tuning']:.2f} of a step of full fine-tuning "
        f"({adapter['LoRA']:.2f} s against {adapter['full fine-tuning']:.2f} s).",
        f"- Two processes with half the cores and half the batch each take {processes['2'] / processes['1']:.2f} of "
        f"one with all of both ({processes['2']:.2f} s against {processes['1']:.2f} s).",
        "",
        "## Around the step",
        "",
        f"- Loading, preprocessing and collating a batch of {BATCH_SIZE} images of 256 x 256 pixels in one process: "
        f"{loading:.2f} s, to be spread over `dataloader_num_workers`.",
        f"- Filling the text cache: {captions['packed']:,.0f} captions a second, against {captions['padded']:,.0f} "
        "with texts padded one by one.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write RESULTS.md and results.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder of RESULTS.md")
    output = parser.parse_args().output
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    start = time.monotonic()
    packages = (("starft_hf", starft_hf), ("torch", torch), ("transformers", transformers))
    results: dict[str, Any] = {
        "device": device,
        "versions": {name: package.__version__ for name, package in packages},
        "steps": {
            f"{shape}, {num_classes:,}": measure_steps(shape, num_classes, repetitions)
            for shape, num_classes, repetitions in STEPS
        },
        "memory": [
            {"what": what, "batch": batch, "gib": peak_gib(batch, **settings)} for what, batch, settings in MEMORY
        ],
        "adapter": measure_adapter(),
        "processes": {str(processes): seconds_per_step(processes) for processes in (1, 2)},
        "loading_seconds": loading_seconds(BATCH_SIZE),
        "captions_per_second": captions_per_second(),
    }
    results["seconds"] = round(time.monotonic() - start)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "RESULTS.md").write_text(as_markdown(results))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
