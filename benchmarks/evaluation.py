"""What evaluating costs: `python -m benchmarks.evaluation` writes EVALUATION.md."""

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch.utils.data import DataLoader

from benchmarks.metrics import BATCH_SIZE as METRIC_BATCH_SIZE
from benchmarks.metrics import NUM_CLASSES, ROWS, measure_metrics
from benchmarks.processes import KEEPS_MEMORY, in_fresh_process
from benchmarks.setup import Scene, make_scene
from benchmarks.steps import seconds_in_turn
from starft_hf import evaluate_zero_shot
from starft_hf.data.images import ImagePreprocessor
from starft_hf.models.encoder import DualEncoder


BATCH_SIZE = 32
IMAGES = 320
CLASSES = 20
REPETITIONS = 3


def bare_forwards(scene: Scene) -> None:
    """Load, preprocess and embed every image, and nothing else."""
    preprocess = ImagePreprocessor(scene.processor.image_processor)
    normalized = DualEncoder.of(scene.model, scene.processor).normalized

    def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
        return torch.stack([features["pixel_values"] for features in preprocess([row["image"] for row in rows])])

    model = scene.model.eval()
    with torch.no_grad():
        for pixels in DataLoader(scene.dataset, BATCH_SIZE, collate_fn=collate):
            model.get_image_features(pixel_values=normalized(pixels.to(model.device)))


def evaluation(scene: Scene) -> None:
    """Classify the same images, with groups, calibration and the worst group's mistakes."""
    evaluate_zero_shot(
        scene.model,
        scene.processor,
        scene.dataset,
        group_function=lambda row: f"{row['label']}",
        keep_mistakes=12,
        batch_size=BATCH_SIZE,
        progress=False,
    )


def measure_evaluation() -> dict[str, list[float]]:
    """Seconds of both."""
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    scene = make_scene("ViT-B/32", CLASSES, IMAGES)
    return seconds_in_turn(
        {"bare": partial(bare_forwards, scene), "evaluation": partial(evaluation, scene)}, REPETITIONS
    )


def as_markdown(seconds: dict[str, list[float]], metrics: dict[str, dict[str, float]]) -> str:
    """The results for people."""
    bare, whole = seconds["bare"], seconds["evaluation"]
    ratios = sorted(one / other for one, other in zip(whole, bare, strict=True))
    lines = [
        "# Evaluation",
        "",
        f"By `python -m benchmarks.evaluation`, on {torch.get_num_threads()} CPU cores; torch {torch.__version__}, "
        f"transformers {transformers.__version__}.",
        "",
        "## A dataset",
        "",
        f"`evaluate_zero_shot` of ViT-B/32 (random weights) on {IMAGES} images of {CLASSES} classes takes "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        "of loading, preprocessing and embedding the same images and nothing else "
        f"({statistics.median(whole):.1f} s against {statistics.median(bare):.1f} s).",
        "The prompts of the classes are part of it: more images make it less.",
        "",
        "## Metrics",
        "",
        f"CPU seconds for {ROWS:,} rows of {NUM_CLASSES} classes; batches are of {METRIC_BATCH_SIZE:,}.",
        "",
        "| | function | class, at once | class, in batches |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, ways in metrics.items():
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in ways.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write EVALUATION.md."""
    seconds = in_fresh_process(KEEPS_MEMORY, measure_evaluation)
    with tempfile.TemporaryDirectory() as folder:
        text = as_markdown(seconds, measure_metrics(folder))
    Path(__file__).with_name("EVALUATION.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
