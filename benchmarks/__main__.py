"""`python -m benchmarks`: every figure of RESULTS.md, from one run."""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import starft_hf
from benchmarks.loading import captions_per_second, loading_seconds
from benchmarks.memory import peak_gib
from benchmarks.processes import KEEPS_MEMORY, RETURNS_MEMORY, in_fresh_process
from benchmarks.steps import CROPPED_VARIANTS, measure_steps


RATIOS = (
    *(("full", "paper"), ("full", "plain"), ("full", "no regularizer"), ("text", "paper"), ("none", "paper")),
    # The least that `full / paper` can be: no step with a regularizer costs less than one without.
    ("no regularizer", "paper"),
    *(("full, bf16", "no regularizer, bf16"), ("full, bf16", "full")),
)
RATIOS_OF_COUNTS = RATIOS[:6]
CROPPED_RATIOS = (
    *(("text, bf16", "no regularizer, bf16"), ("none, bf16", "no regularizer, bf16")),
    ("text, bf16", "plain, bf16"),
)
BATCH_SIZE = 32

# Model, classes, images per step, measured rounds.
STEPS = (
    ("ViT-B/32", 1000, BATCH_SIZE, 5),
    ("ViT-B/32", 2, 8, 5),
    ("ViT-B/16", 1000, 16, 5),
    ("ViT-B/16", 2, 8, 3),
)

CROPPED_STEPS = STEPS[::2]

# Images per step, settings.
MEMORY: tuple[tuple[int, dict[str, Any]], ...] = ((BATCH_SIZE, {}), (512, {"mini_batch_size": 32}))


def measure_memory() -> list[float]:
    """Peak memory of every entry of `MEMORY` in GiB; at the same time, because a peak does not depend on the time."""
    with ThreadPoolExecutor() as threads:
        measured = (
            threads.submit(in_fresh_process, RETURNS_MEMORY, peak_gib, batch, **settings) for batch, settings in MEMORY
        )
        return [future.result() for future in list(measured)]


def as_markdown(results: dict[str, Any]) -> str:
    """The results for people."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    variants = list(next(iter(results["steps"].values())))
    note = [results["note"], ""] if results.get("note") else []
    lines = [
        "# Benchmarks",
        "",
        f"By `make bench`, on {results['device']}; {versions}{_took(results)}.",
        "",
        *note,
        "Random weights of real shapes, 224 x 224 pixels, fused AdamW, float32 unless another type is named. After a",
        "first round, which is not counted, all steps are taken in turn, in another order in each round; seconds are",
        "medians (smallest to largest in brackets), ratios medians of those of the rounds. The allocator keeps memory",
        "that is freed, as on GPUs, for all of them.",
        "",
        "- paper: hand-written, every text at 77 tokens, nothing shared, a live reference",
        "- plain: `CLIPModel(..., return_loss=True)` at 77 tokens, no regularizer",
        "- none, text, full: `StarFTTrainer` with that `reference_cache`",
        '- no regularizer: `StarFTTrainer` with `regularizer="none"`',
        "- bf16: under autocast, as `Trainer` computes with `bf16=True`",
        "",
        "Earlier versions of this page said 0.20 and 0.44 for full / paper, which was wrong: the step of the paper",
        "had run once, first and cold. Their figures of bf16 were of float32.",
        "",
        "## A training step",
        "",
        "| Model, classes, batch | " + " | ".join(f"{variant}, s" for variant in variants) + " |",
        "| --- |" + " ---: |" * len(variants),
    ]
    for name, seconds in results["steps"].items():
        lines.append(f"| {name} | {' | '.join(_spread(seconds[variant]) for variant in variants)} |")
    lines += _ratio_table(results["steps"], RATIOS)
    lines += [
        "",
        "Floating-point operations of matrix products and convolutions, counted, which depend on no machine:",
    ]
    counted = {name: {each: [count] for each, count in own.items()} for name, own in results["operations"].items()}
    lines += _ratio_table(counted, RATIOS_OF_COUNTS)
    lines += [
        "",
        "## With random crops, in bf16",
        "",
        "The reference embeds the images of every step, under the autocast of the model.",
        *_ratio_table(results["cropped"], CROPPED_RATIOS),
    ]
    lines += ["", "## Peak memory, ViT-B/32", "", "| Batch | `mini_batch_size` | GiB | of batch 32 |"]
    lines.append("| ---: | ---: | ---: | ---: |")
    base = results["memory"][0]["gib"]
    for row in results["memory"]:
        chunk = row["settings"].get("mini_batch_size", "")
        lines.append(f"| {row['batch']} | {chunk} | {row['gib']:.2f} | {row['gib'] / base:.2f} |")
    loading, captions = results["loading_seconds"], results["captions_per_second"]
    lines += [
        "",
        "## Around the step",
        "",
        f"- Loading, preprocessing and collating a batch of {BATCH_SIZE} images of 256 x 256 pixels in one process: "
        f"{loading:.2f} s, to be spread over `dataloader_num_workers`.",
        f"- Filling the text cache: {captions['packed']:,.0f} captions a second, against {captions['padded']:,.0f} "
        "with texts padded one by one.",
    ]
    return "\n".join(lines) + "\n"


def _ratio_table(steps: dict[str, dict[str, list[float]]], ratios: Sequence[tuple[str, str]]) -> list[str]:
    lines = ["", "| Model, classes, batch | " + " | ".join(f"{above} / {below}" for above, below in ratios) + " |"]
    lines.append("| --- |" + " ---: |" * len(ratios))
    for name, seconds in steps.items():
        lines.append(f"| {name} | {' | '.join(_ratio(seconds, above, below) for above, below in ratios)} |")
    return lines


def _took(results: dict[str, Any]) -> str:
    return f"; {results['seconds']} s in all" if results["seconds"] is not None else ""


def _ratio(seconds: dict[str, list[float]], above: str, below: str) -> str:
    if above not in seconds or below not in seconds:
        return "-"
    return _spread([one / other for one, other in zip(seconds[above], seconds[below], strict=True)])


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


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
    steps = in_fresh_process(KEEPS_MEMORY, measure_steps, STEPS)
    results: dict[str, Any] = {
        "device": device,
        "versions": {name: package.__version__ for name, package in packages},
        "steps": steps["seconds"],
        "operations": steps["operations"],
        "cropped": in_fresh_process(KEEPS_MEMORY, measure_steps, CROPPED_STEPS, CROPPED_VARIANTS)["seconds"],
        "memory": [
            {"batch": batch, "settings": settings, "gib": gib}
            for (batch, settings), gib in zip(MEMORY, measure_memory(), strict=True)
        ],
        "loading_seconds": loading_seconds(BATCH_SIZE),
        "captions_per_second": captions_per_second(),
    }
    results["seconds"] = round(time.monotonic() - start)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "RESULTS.md").write_text(as_markdown(results))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
