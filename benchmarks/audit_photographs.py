"""Whether an audit's score ranks models on photographs: a part of `python -m benchmarks.audit`.

Model A of `benchmarks.photographs` is fine-tuned on draws that nothing else uses, and audited on validation images
without group labels. What that says is compared with the worst group of test images, which are of other cut-outs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.grid_runner import GridCell
from benchmarks.photographs.grid import task_settings
from benchmarks.photographs.methods import RIGHT_TEMPLATES
from benchmarks.photographs.models import folder_of
from benchmarks.photographs.world import make_split
from starft_hf import StarFTTrainer, audit, evaluate_zero_shot
from starft_hf.evaluation import EvaluationResult


MODEL, CLASSES = "A0", 6
# By draw.
CORRELATIONS = {200: 0.95, 201: 0.8, 202: 1.0, 203: 0.95, 204: 0.8, 205: 0.5}
METHODS = {
    "FLYP": ("none", 0.0),
    "kl@10": ("kl", 10.0),
    "kl@100": ("kl", 100.0),
    "star@10": ("star", 10.0),
    "star@100": ("star", 100.0),
}


@dataclass(frozen=True)
class Photographed(GridCell):
    """A model that was fine-tuned on a draw."""

    part: str
    method: str
    draw: int


def of_draw(draw: int) -> list[Photographed]:
    """The models of a draw."""
    return [Photographed("photographs", method, draw) for method in METHODS]


def photographed() -> Iterator[Photographed]:
    """All models, draw by draw."""
    for draw in CORRELATIONS:
        yield from of_draw(draw)


def run_photographed(cell: Photographed, work: Path) -> dict[str, Any]:
    """The true worst group and average of a model, and what an audit of it says."""
    start, (regularizer, weight) = folder_of(MODEL), METHODS[cell.method]
    args = task_settings(
        MODEL,
        str(work / f"{cell.method}-{cell.draw}"),
        regularizer=regularizer,
        reg_weight=weight,
        seed=cell.draw,
        save_strategy="no",
    )
    shared: dict[str, Any] = {"draw": cell.draw, "classes": CLASSES}
    pool = list(RIGHT_TEMPLATES)
    train = make_split("train", correlation=CORRELATIONS[cell.draw], size=480, **shared)
    trainer = StarFTTrainer(str(start), args, train, spuriosity=pool)
    trainer.train()
    tuned, processor = trainer.model, trainer.processing_class
    test = make_split("test", size=960, **shared)
    true = evaluate_zero_shot(tuned, processor, test, group_column="group", batch_size=120, progress=False)
    assert isinstance(true, EvaluationResult)
    audited = make_split("validation", size=480, **shared).select_columns(["image", "label"])
    result = audit(
        tuned,
        str(start),
        audited,
        processor=processor,
        spuriosity=pool,
        vocabulary=None,
        saliency_maps=0,
        cache_dir=work / "features",
        progress=False,
    )
    return {
        "worst_group": true.worst_group_accuracy,
        "average": true.accuracy,
        "balanced": {"score": result.score, "average": result.average.after.accuracy},
    }
