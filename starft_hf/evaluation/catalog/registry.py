"""Benchmarks by name, read from the data files of this folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

import yaml

from starft_hf.data import imagenet as imagenet_names
from starft_hf.data.groups import SEPARATOR
from starft_hf.evaluation.catalog import imagenet, steps
from starft_hf.evaluation.catalog.classes import ClassSpace, classes_from_hub, classes_from_names
from starft_hf.evaluation.catalog.entry import BenchmarkEntry, HubSource
from starft_hf.evaluation.catalog.folders import FOLDERS
from starft_hf.utils.files import expanded
from starft_hf.utils.names import unknown_name


PUBLISHED_NOTE = (
    "Top-1 accuracy in percent of CLIP ViT-B/16, fine-tuned on ImageNet, all as measured in one harness (the table of "
    "the TRACER paper). Figures of other harnesses differ by more than methods do: compare only within this one."
)

# The data file refers to functions of these modules by name.
FUNCTIONS: dict[str, Any] = {**vars(imagenet_names), **vars(imagenet), **vars(steps)}


def _read(file: str) -> Any:
    return yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf-8"))


@cache
def _entries() -> dict[str, BenchmarkEntry]:
    return {name: _entry(name, fields) for name, fields in _read("benchmarks.yaml").items()}


def _entry(name: str, fields: Mapping[str, Any]) -> BenchmarkEntry:
    values: dict[str, Any] = {
        field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()
    }
    values["hub"] = tuple(HubSource(**source) for source in fields["hub"])
    values["classes"] = _classes(name, fields)
    values["steps"] = tuple(FUNCTIONS[step] for step in fields.get("steps", ()))
    for field in ("templates", "read_classes"):
        if isinstance(values.get(field), str):
            values[field] = FUNCTIONS[values[field]]
    return BenchmarkEntry(name=name, **values)


def _classes(name: str, fields: Mapping[str, Any]) -> ClassSpace | Callable[[], ClassSpace]:
    classes, size = fields["classes"], fields["num_classes"]
    if isinstance(classes, str):
        return cast(Callable[[], ClassSpace], FUNCTIONS[classes])
    if "hub_file" in classes:
        return partial(classes_from_hub, name, fields["hub"][0]["hub_id"], classes["hub_file"], size)
    subset = isinstance(classes, Mapping)
    listed = classes["imagenet_subset"] if subset else classes
    # A class too few or too many would shift the labels after it.
    if len(set(listed)) != size:
        raise ValueError(f"{name!r} lists {len(set(listed))} distinct classes, but num_classes is {size}; correct it")
    return partial(imagenet.imagenet_subset, listed) if subset else classes_from_names(listed)


def benchmark_names() -> list[str]:
    """The names that `load_benchmark` accepts."""
    return list(_entries())


def load_benchmark(
    name: str,
    *,
    classes: Any = None,
    group_names: Mapping[str, Sequence[str]] | None = None,
    root: str | PathLike[str] | None = None,
) -> BenchmarkEntry:
    """A benchmark of the catalog. Nothing is downloaded before its `load` or `evaluate`.

    Args:
        name: one of `benchmark_names()`.
        classes: its classes, where this package does not have them; the entry's notes say what to pass, if not names
            in label order or a file of them, one per line.
        group_names: the names of the values 0, 1, ... of group columns, where this package does not have them.
        root: the folder to read it from, as it is distributed, or one above; None: the Hub.

    Raises:
        FileNotFoundError: if there is no such folder, or it lacks the names of the classes.
        ValueError: if the name or a group column is unknown, the classes do not fit, or the benchmark is not
            distributed as a folder of images.
    """
    entries = _entries()
    if name not in entries:
        raise ValueError(unknown_name("benchmark", name, entries))
    entry = entries[name]
    if root is not None:
        folder = _folder(name, expanded(root))
        entry = replace(entry, root=folder)
        if classes is None and (read := FOLDERS[name].classes) is not None:
            classes = read(folder)
    if classes is not None:
        space = classes if isinstance(classes, ClassSpace) else entry.read_classes(classes)
        entry = replace(entry, classes=space)
    return replace(entry, group_names={**entry.group_names, **(group_names or {})})


def _folder(name: str, root: Path) -> Path:
    if name not in FOLDERS:
        raise ValueError(
            f"{name!r} is distributed as arrays and cannot be read from a folder; without root, it is downloaded from "
            f"the Hub. Those that can be read from one are {', '.join(FOLDERS)}"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}; pass one with {FOLDERS[name].holds}")
    return root


def catalog_table() -> str:
    """All benchmarks as a Markdown table: name, Hub id, classes, groups, measure, and when columns were checked."""
    headings = ("Name", "Benchmark", "On the Hub", "Classes", "Groups", "Measure", "Checked")
    rows = [headings, ("---",) * len(headings), *map(_row, _entries().values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _row(entry: BenchmarkEntry) -> tuple[str, ...]:
    groups = SEPARATOR.join("class" if column == "label" else column for column in entry.group_columns) or "class"
    if entry.ignored_groups:
        groups += f", without {', '.join(entry.ignored_groups)}"
    return (
        f"`{entry.name}`",
        entry.title,
        " + ".join(f"`{source.hub_id}`" for source in entry.hub),
        f"{entry.num_classes:,}",
        groups,
        entry.metric.replace("_", " "),
        entry.checked or "never",
    )


def published_accuracies(benchmark: str) -> dict[str, float]:
    """Published accuracies in percent by method, as `PUBLISHED_NOTE` says; a ValueError if `benchmark` has none."""
    published = _read("published.yaml")
    if benchmark not in published:
        raise ValueError(unknown_name("benchmark with published figures", benchmark, published))
    return dict(published[benchmark])


@dataclass(frozen=True)
class PublishedFigure:
    """What is reported of a method on a benchmark, in percent.

    Attributes:
        method: its name in the source.
        model: what was fine-tuned or, for "zero-shot", evaluated.
        average: top-1 accuracy, on ImageNet itself for "imagenet"; None if it was not seen.
        robust: worst-group accuracy; for "imagenet" the mean over V2, R, A, Sketch and, where `shifts` says so,
            ObjectNet.
        source: where the figures were read; "second hand" if that was not a source of the method's authors.
        shifts: "with ObjectNet" or "without ObjectNet" for "imagenet", None otherwise.
    """

    method: str
    model: str
    average: float | None
    robust: float
    source: str
    shifts: str | None = None


def published_figures(benchmark: str) -> tuple[PublishedFigure, ...]:
    """What papers report beside the one harness of `published_accuracies`, for "imagenet" and "waterbirds".

    Args:
        benchmark: the name of the benchmark.

    Raises:
        ValueError: if nothing is known of `benchmark`.
    """
    published = _read("published_figures.yaml")
    if benchmark not in published:
        raise ValueError(unknown_name("benchmark with published figures", benchmark, published))
    return tuple(
        PublishedFigure(method, average=average, robust=robust, **part["group"])
        for part in published[benchmark]
        for method, (average, robust) in part["rows"].items()
    )
