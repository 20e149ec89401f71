"""Accuracies that papers report, to tell whether one's own are in the right region."""

from starft_hf.utils.names import unknown_name


PUBLISHED_NOTE = (
    "Top-1 accuracy in percent of CLIP ViT-B/16, fine-tuned on ImageNet, all as measured in one harness (the table of "
    "the TRACER paper). Figures of other harnesses differ by more than methods do: compare only within this one."
)

PUBLISHED_BENCHMARKS = ("imagenet", "imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch")

# By method, in the order of PUBLISHED_BENCHMARKS.
PUBLISHED_ACCURACIES = {
    "zero-shot": (68.3, 61.9, 77.7, 50.0, 48.3),
    "cross-entropy": (82.8, 72.6, 68.5, 39.2, 48.0),
    "L2-SP": (82.9, 72.6, 68.8, 39.7, 48.2),
    "LP-FT": (82.1, 72.1, 70.4, 46.3, 48.7),
    "FLYP": (82.7, 72.8, 71.3, 48.5, 49.9),
    "CAR-FT": (83.3, 74.0, 75.4, 49.5, 53.0),
    "Lipsum-FT": (83.3, 73.6, 75.9, 49.9, 51.5),
    "CaRot": (83.2, 74.1, 77.7, 51.6, 52.7),
}


def published_accuracies(benchmark: str) -> dict[str, float]:
    """Accuracy in percent by method, as published; `PUBLISHED_NOTE` says of what and by whom.

    Args:
        benchmark: one of `PUBLISHED_BENCHMARKS`.

    Raises:
        ValueError: if there are no figures for it.
    """
    if benchmark not in PUBLISHED_BENCHMARKS:
        raise ValueError(unknown_name("benchmark with published figures", benchmark, PUBLISHED_BENCHMARKS))
    column = PUBLISHED_BENCHMARKS.index(benchmark)
    return {method: accuracies[column] for method, accuracies in PUBLISHED_ACCURACIES.items()}
