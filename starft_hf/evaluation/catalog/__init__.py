"""The benchmarks of robust fine-tuning, as entries that can be loaded, prepared and evaluated.

Examples:
    >>> from starft_hf.evaluation.catalog import load_benchmark
    >>> entry = load_benchmark("waterbirds")
    >>> entry.metric
    'worst_group_accuracy'
    >>> result = entry.evaluate("openai/clip-vit-base-patch16")  # doctest: +SKIP
    >>> entry.score(result)  # doctest: +SKIP
    >>> load_benchmark("waterbirds", root="data/waterbirds").load(split="train")  # doctest: +SKIP
"""

from starft_hf.data.imagenet import imagenet_class_names, imagenet_templates
from starft_hf.evaluation.catalog.classes import ClassSpace
from starft_hf.evaluation.catalog.entry import BenchmarkEntry, HubSource
from starft_hf.evaluation.catalog.registry import (
    PUBLISHED_NOTE,
    PublishedFigure,
    benchmark_names,
    catalog_table,
    load_benchmark,
    published_accuracies,
    published_figures,
)


__all__ = [
    "PUBLISHED_NOTE",
    "BenchmarkEntry",
    "ClassSpace",
    "HubSource",
    "PublishedFigure",
    "benchmark_names",
    "catalog_table",
    "imagenet_class_names",
    "imagenet_templates",
    "load_benchmark",
    "published_accuracies",
    "published_figures",
]
