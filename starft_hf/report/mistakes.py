"""The most confident mistakes in the worst group, with thumbnails."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from starft_hf.evaluation.results import EvaluationResult, Mistake
from starft_hf.report.data import Run
from starft_hf.report.rows import Section
from starft_hf.report.thumbnails import thumbnail, thumbnail_from


# Thumbnails on the page, per dataset, if that is enough for a few of every model.
MAX_THUMBNAILS = 12
_MIN_PER_MODEL = 3


def images_of_mistakes(
    runs: Iterable[Run], datasets: Mapping[str, Any], image_column: str = "image"
) -> dict[str, dict[int, Any]]:
    """The images of the mistakes in the results of `runs`, by name of the dataset and index in it."""
    runs = list(runs)
    found = {}
    for name, dataset in datasets.items():
        samples = {mistake.sample for run in runs for mistake in mistakes_of(run, name)}
        found[name] = {sample: dataset[sample][image_column] for sample in sorted(samples)}
    return found


def mistakes_of(run: Run, dataset: str) -> tuple[Mistake, ...]:
    """The mistakes of a run on a dataset; none where images and captions were retrieved."""
    result = run.results[dataset]
    return result.mistakes if isinstance(result, EvaluationResult) else ()


def galleries_of(section: Section, images: Mapping[int, Any]) -> list[dict[str, Any]]:
    """The mistakes of every model on a dataset, from the first of its seeds that has any, with `images` by index."""
    found = []
    for entry, _ in section.trained:
        runs = [(entry.label, run.seed, mistakes_of(run, section.dataset)) for run in entry.runs]
        found += [part for part in runs if part[2]][:1]
    count = max(_MIN_PER_MODEL, MAX_THUMBNAILS // max(1, len(found)))
    return [
        {
            "label": label,
            "seed": seed,
            "group": mistakes[0].group,
            "tiles": [(mistake, thumbnail(images.get(mistake.sample))) for mistake in mistakes[:count]],
        }
        for label, seed, mistakes in found[:MAX_THUMBNAILS]
    ]


def thumbnails_as_plain(
    sections: Sequence[Section], images: Mapping[str, Mapping[int, Any]]
) -> dict[str, dict[str, str]]:
    """The thumbnails that the page shows, for JSON."""
    return {
        section.dataset: {
            str(mistake.sample): small.uri
            for gallery in galleries_of(section, images.get(section.dataset, {}))
            for mistake, small in gallery["tiles"]
            if small is not None
        }
        for section in sections
    }


def thumbnails_from_plain(content: Mapping[str, Mapping[str, str]]) -> dict[str, dict[int, Image.Image]]:
    """The inverse of `thumbnails_as_plain`; ValueError if something is not such a thumbnail."""
    return {
        dataset: {int(sample): thumbnail_from(uri) for sample, uri in images.items()}
        for dataset, images in content.items()
    }
