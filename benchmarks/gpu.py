"""`make gpu`: tests and figures of one CUDA GPU in at most 8 minutes, as RESULTS-GPU.md and results-gpu.json.

It needs no network and nothing but the packages. With `--toy` it runs on a CPU at toy size, which is how it is tested.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

import starft_hf
from benchmarks.images import BY_HAND, CROP_SCALE, make_photos, with_transform
from benchmarks.setup import CAPTION_TEMPLATE, MAX_LENGTH, TOY, Scene, make_scene, make_state
from benchmarks.steps import GPU_VARIANTS, VARIANTS, make_trainer, open_step, seconds_of


FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
NOTES = FOLDER / "gpu_notes.md"
WARM_UP = 2
# Seconds that are left for compiling a step.
COMPILING = 90


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        steps: shapes, and images per step.
        classes: of the made-up data.
        rounds: measured steps of every variant.
        fed: the shape, images per step and steps of training fed from JPEGs.
        photo: width and height of the JPEGs.
        workers: processes that load.
        evaluated: images that are evaluated.
        minutes: after which nothing further is begun.
    """

    steps: tuple[tuple[str, int], ...] = (("ViT-B/16", 512), ("ViT-B/32", 1024))
    classes: int = 1000
    rounds: int = 5
    fed: tuple[str, int, int] = ("ViT-B/32", 256, 48)
    photo: tuple[int, int] = (500, 375)
    workers: int = 8
    evaluated: int = 4096
    minutes: float = 7.5


# Caches, chunks and frozen parts against the plain way, and golden runs.
EXACT_TESTS = (
    "tests/training/test_golden.py",
    "tests/training/test_exact_savings.py",
    "tests/training/test_captions_and_labels.py",
    "tests/training/test_plain_drift.py",
    "tests/training/test_presets.py",
    "tests/training/test_freezing.py",
    "tests/training/test_averaging.py",
    "tests/training/test_batch_norm.py",
    "tests/models/test_models.py",
    "tests/models/test_adapters.py::test_caches_change_nothing",
    "tests/models/test_adapters.py::test_a_merged_model_computes_what_the_adapted_one_does",
    "tests/reference",
)

SMALL = Size(((TOY, 4),), 3, 2, (TOY, 4, 5), (60, 45), 1, 8)


class Clock:
    """Tells when there is no time left to begin something."""

    def __init__(self, minutes: float):
        self.start, self.seconds = time.monotonic(), 60 * minutes

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def allows(self, what: str, takes: float = 0) -> bool:
        """Whether something that takes so many seconds may begin; it is said if not."""
        in_time = self.elapsed + takes <= self.seconds
        if not in_time:
            print(f"no time left for: {what}", flush=True)
        return in_time


def passes() -> tuple[tuple[str, ...], ...]:
    """The variants of a step, what matters most first: bf16, then, on a GPU, compiled, and float32."""
    variants = VARIANTS + GPU_VARIANTS * torch.cuda.is_available()
    compiled = tuple(variant for variant in variants if "compiled" in variant)
    bf16 = tuple(variant for variant in variants if "bf16" in variant and variant not in compiled)
    # Those that compute more than they need are there in bf16, on a GPU.
    rest = bf16 + compiled + ("none", "text") * torch.cuda.is_available()
    return bf16, compiled, tuple(variant for variant in variants if variant not in rest)


def run_tests(clock: Clock) -> dict[str, Any]:
    """Run the tests that need a GPU, and return how they ended."""
    if not torch.cuda.is_available():
        return {"passed": True, "summary": "not run without one"}
    found = [
        _pytest(["-m", "gpu", "tests/training/test_gpu.py"], clock),
        _pytest(EXACT_TESTS, clock, STARFT_TEST_GPU="1"),
    ]
    return {
        "passed": all(one["passed"] for one in found),
        "summary": f"{found[0]['summary']}. Those of exactness, on the GPU: {found[1]['summary']}.",
        "failures": [line for one in found for line in one["failures"]],
    }


def _pytest(arguments: Sequence[str], clock: Clock, **environment: str) -> dict[str, Any]:
    several = ["-n", "8"] if find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *several, *arguments]
    settings = {**os.environ, **environment}
    limit = max(30.0, clock.seconds - clock.elapsed) / 2.5
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": "not finished in time", "failures": []}
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    summary = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else done.stderr[-300:]
    print("\n".join([summary, *lines]), flush=True)
    return {"passed": done.returncode == 0, "summary": summary, "failures": lines}


def measure_steps(
    shape: str, batch_size: int, variants: Sequence[str], size: Size, clock: Clock
) -> dict[str, dict[str, Any]]:
    """Seconds of a step and peak memory of some variants, one after the other."""
    found: dict[str, dict[str, Any]] = {}
    if not (variants and clock.allows(f"{shape}: {'; '.join(variants)}")):
        return found
    scene = make_scene(shape, size.classes, min(batch_size, 64))
    make_state(scene.optimizer)
    with tempfile.TemporaryDirectory() as cache:
        for variant in variants:
            if not clock.allows(f"{shape}, {variant}", COMPILING * ("compiled" in variant)):
                break
            found[variant] = _measure_step(partial(open_step, variant, scene, batch_size, cache), size.rounds)
            print(f"{shape}, {batch_size}: {variant} {found[variant]}", flush=True)
    return found


def _measure_step(make: Callable[[], Any], rounds: int) -> dict[str, Any]:
    try:
        with make() as step:
            for _ in range(WARM_UP):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            seconds = [seconds_of(step) for _ in range(rounds)]
            peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
            return {"seconds": seconds, "peak_gib": peak}
    except torch.OutOfMemoryError:
        return {"seconds": None, "peak_gib": None}
    finally:
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


class _Times(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure_fed(size: Size, clock: Clock) -> dict[str, float]:
    """Images per second of training fed from JPEGs, by hand and by ours, and of evaluation."""
    found: dict[str, float] = {}
    shape, batch_size, steps = size.fed
    settings: dict[str, Any] = {
        "bf16": torch.cuda.is_available(),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "dataloader_num_workers": size.workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = make_photos(folder, size.photo, 32, batch_size * steps)
        ours = {"decoded": None, "image_cache": str(folder / "images")}
        for kind in (BY_HAND, *ours):
            if not clock.allows(f"training fed by {size.workers} workers, {kind}"):
                return found
            scene = make_scene(shape, 10, 1)
            scene = type(scene)(scene.model, scene.optimizer, scene.processor, photos)
            if kind == BY_HAND:
                found[kind] = _rate(trainer_by_hand(scene, folder, settings), batch_size)
                continue
            trainer = make_trainer(
                scene, str(folder / kind), crop_scale=CROP_SCALE, image_cache=ours[kind], **settings
            )
            found[kind] = _rate(trainer, batch_size)
        if clock.allows("evaluation"):
            rows = photos.select([index % len(photos) for index in range(size.evaluated)])
            # Images are kept by the first evaluation.
            trainer.evaluate(rows)
            start = time.perf_counter()
            trainer.evaluate(rows)
            found["evaluation"] = len(rows) / (time.perf_counter() - start)
    print(f"fed: {found}", flush=True)
    return found


def trainer_by_hand(scene: Scene, folder: Path, settings: dict[str, Any]) -> Trainer:
    """Plain contrastive fine-tuning as a user of Trainer writes it, with a transform of the dataset."""
    names = scene.dataset.features["label"].names
    captions = scene.processor.tokenizer(
        [CAPTION_TEMPLATE.format(name) for name in names],
        padding="max_length",
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        labels = [example["labels"] for example in examples]
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixels, "return_loss": True, **{key: rows[labels] for key, rows in captions.items()}}

    args = TrainingArguments(
        str(folder / "by_hand"),
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )
    rows: Any = with_transform(scene.dataset, scene.processor.image_processor)
    return Trainer(scene.model, args, train_dataset=rows, data_collator=collate)


def _rate(trainer: Trainer, batch_size: int) -> float:
    times = _Times()
    trainer.add_callback(times)
    trainer.train()
    # In the first steps the processes that load start and fill their queues, two batches each.
    begin = len(times.ends) // 3
    return (len(times.ends) - 1 - begin) * batch_size / (times.ends[-1] - times.ends[begin])


def as_markdown(results: dict[str, Any]) -> str:
    """The results for people."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "# On a GPU",
        "",
        f"By `make gpu`, on {results['device']}; {versions}; {results['seconds']} s in all.",
        "",
        "Random weights of real shapes, 224 x 224 pixels, fused AdamW; every variant alone, after two steps that are",
        "not counted: the median of the next ones, and the peak of allocated memory. RESULTS.md says what",
        "the variants are; a dash means that the memory did not suffice.",
        "",
        f"Tests that need a GPU: {results['tests']['summary']}",
    ]
    for name, variants in results["steps"].items():
        lines += [
            "",
            f"## A training step, {name}",
            "",
            "| Variant | Seconds | Images/s | GiB | of paper | of plain |",
        ]
        lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
        batch_size = int(name.rpartition(" ")[2])
        for variant, measured in variants.items():
            seconds, peak = _median(measured), measured["peak_gib"]
            # Those of the same precision.
            _, comma, precision = variant.partition(", ")
            others = [_median(variants.get(f"{other}{comma}{precision}")) for other in ("paper", "plain")]
            cells = [
                "-" if seconds is None else f"{seconds:.3f}",
                "-" if seconds is None else f"{batch_size / seconds:,.0f}",
                "-" if peak is None else f"{peak:.1f}",
                *("-" if seconds is None or other is None else f"{seconds / other:.2f}" for other in others),
            ]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines += ["", "## Fed from JPEGs", "", results["about_fed"], "", "| What | Images/s |", "| --- | ---: |"]
    lines += [f"| {what} | {rate:,.0f} |" for what, rate in results["fed"].items()]
    return "\n".join(lines) + "\n"


def write(results: dict[str, Any], folder: Path, clock: Clock) -> None:
    """Write what is there, for programs and for people."""
    results["seconds"] = round(clock.elapsed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results-gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "RESULTS-GPU.md").write_text(as_markdown(results))


def _median(measured: dict[str, Any] | None) -> float | None:
    return statistics.median(measured["seconds"]) if measured and measured["seconds"] else None


def main() -> int:
    """Run and measure; returns 1 if a test has failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--toy", action="store_true", help="at toy size, on whatever there is")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of RESULTS-GPU.md")
    parser.add_argument("--report", action="store_true", help="measure nothing, and write the page of what is there")
    options = parser.parse_args()
    if options.report:
        results = json.loads((options.output / "results-gpu.json").read_text())
        notes = NOTES.read_text() if NOTES.exists() else ""
        (options.output / "RESULTS-GPU.md").write_text(f"{as_markdown(results)}\n{notes}".rstrip() + "\n")
        return 0
    if not options.toy and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --toy runs at toy size without one")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    size = SMALL if options.toy else Size()
    clock = Clock(size.minutes)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    packages = (("starft_hf", starft_hf), ("torch", torch), ("transformers", transformers))
    shape, batch_size, _ = size.fed
    photos = f"{size.photo[0]} x {size.photo[1]}"
    results = {
        "device": device,
        "versions": {name: package.__version__ for name, package in packages},
        "size": asdict(size),
        "tests": run_tests(clock),
        "about_fed": f"{shape}, batch {batch_size}, JPEGs of {photos}, {size.workers} workers.",
    }
    steps: dict[str, dict[str, Any]] = {f"{name}, batch {batch}": {} for name, batch in size.steps}
    results |= {"steps": steps, "fed": {}}
    # What matters most comes first, for when time does not suffice; what is there is kept, whatever comes after.
    for number, variants in enumerate(passes()):
        for name, batch in size.steps:
            steps[f"{name}, batch {batch}"] |= measure_steps(name, batch, variants, size, clock)
            write(results, options.output, clock)
        if number == 0:
            results["fed"] = measure_fed(size, clock)
            write(results, options.output, clock)
    print(as_markdown(results))
    return 0 if results["tests"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
