"""A benchmark: where it is, how to read it, and how it is measured."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

from datasets import ClassLabel, Value, concatenate_datasets, load_dataset
from torch import nn

from starft_hf.evaluation.catalog.classes import ClassSpace, classes_from_names
from starft_hf.evaluation.catalog.columns import (
    as_class_labels,
    as_group_names,
    as_images,
    check_features,
    find_column,
    renamed,
    with_values,
)
from starft_hf.evaluation.evaluate import evaluate_zero_shot
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.utils.names import unknown_name


# A step of preparation: from a data set and its benchmark to the data set as the following steps take it.
Step = Callable[[Any, "BenchmarkEntry"], Any]


@dataclass(frozen=True)
class HubSource:
    """A split of a data set on the Hub.

    Attributes:
        hub_id: the repository.
        split: the split.
        config: the configuration; None: the default one.
        data_files: pattern of the files of the split, so that those of others are not downloaded; None: as the
            repository has it.
        part: what the rows' group says about where they come from, for benchmarks of several data sets.
    """

    hub_id: str
    split: str
    config: str | None = None
    data_files: str | None = None
    part: str = ""

    def load(self, cache_dir: str | PathLike[str] | None, streaming: bool) -> Any:
        """The split as the Hub has it."""
        files = None if self.data_files is None else {self.split: self.data_files}
        return load_dataset(
            self.hub_id,
            self.config,
            data_files=files,
            split=self.split,
            cache_dir=None if cache_dir is None else str(cache_dir),
            streaming=streaming,
        )


@dataclass(frozen=True)
class BenchmarkEntry:
    """A benchmark of robust classification.

    Attributes:
        name: what `load_benchmark` calls it.
        title: what papers call it.
        hub: where its images are. Several are put together.
        classes: its classes, or a function that looks them up or says what is missing.
        num_classes: how many.
        templates: prompts of the zero-shot classifier, or a function that looks them up.
        metric: the measure that papers report, one of `METRICS`.
        image_columns: columns the images may be in; the first that is there is used.
        label_columns: the same for the labels.
        steps: what else preparation does, with images in place and labels and groups still to be named.
        group_columns: columns of the prepared data set whose values name a row's group; empty: the classes.
        group_names: names of the values of group columns.
        ignored_groups: groups that the measure leaves out.
        training_sizes: rows of every group in the training set, where group-adjusted accuracy is usual.
        rows: how many images there are.
        read_classes: makes the class space of what `with_classes` is given.
        license_note: on what terms the images can be had, as far as seen.
        sources: the paper and where else the facts are from.
        notes: what to know before comparing.
        checked: the day the columns were last compared with the Hub; None: never.
    """

    name: str
    title: str
    hub: tuple[HubSource, ...]
    classes: ClassSpace | Callable[[], ClassSpace]
    num_classes: int
    templates: tuple[str, ...] | Callable[[], tuple[str, ...]]
    metric: str
    image_columns: tuple[str, ...] = ("image",)
    label_columns: tuple[str, ...] = ("label",)
    steps: tuple[Step, ...] = ()
    group_columns: tuple[str, ...] = ()
    group_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignored_groups: tuple[str, ...] = ()
    training_sizes: Mapping[str, int] = field(default_factory=dict)
    rows: int | None = None
    read_classes: Callable[[Any], ClassSpace] = classes_from_names
    license_note: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""
    checked: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(unknown_name("metric", self.metric, METRICS))

    @property
    def hub_id(self) -> str:
        """The repositories, joined by " + "."""
        return " + ".join(dict.fromkeys(source.hub_id for source in self.hub))

    @property
    def training_shares(self) -> dict[str, float] | None:
        """The share of every group in the training set, or None."""
        total = sum(self.training_sizes.values())
        return {group: size / total for group, size in self.training_sizes.items()} if total else None

    def class_space(self) -> ClassSpace:
        """The classes.

        Raises:
            ImportError: if they are in a library that is not installed.
            ValueError: if they have to be passed first.
        """
        return self.classes() if callable(self.classes) else self.classes

    def prompts(self) -> tuple[str, ...]:
        """The prompts of the zero-shot classifier.

        Raises:
            ImportError: if they are in a library that is not installed.
        """
        return self.templates() if callable(self.templates) else self.templates

    def with_classes(self, classes: Any) -> "BenchmarkEntry":
        """The benchmark with classes that are not part of this package.

        Args:
            classes: names in label order or a file of them, one per line; other entries say in their notes what they
                take.
        """
        return replace(self, classes=self.read_classes(classes))

    def with_group_names(self, column: str, names: Sequence[str]) -> "BenchmarkEntry":
        """The benchmark with names for the values 0, 1, ... of a group column.

        Raises:
            ValueError: if it has no such group column.
        """
        if column not in self.group_columns:
            raise ValueError(unknown_name(f"group column of {self.name!r}", column, self.group_columns))
        return replace(self, group_names={**self.group_names, column: tuple(names)})

    def load(self, cache_dir: str | PathLike[str] | None = None, *, streaming: bool = False) -> Any:
        """Download the benchmark and prepare it.

        Warns where there are more or fewer rows than the benchmark has.

        Args:
            cache_dir: where downloads are kept; None: where `datasets` keeps them.
            streaming: read rows as they are needed. A stream can be looked at, but not evaluated.

        Returns:
            What `prepare` returns.
        """
        # Classes that are missing are told before gigabytes are downloaded.
        self.class_space()
        parts = {source.part: source.load(cache_dir, streaming) for source in self.hub}
        found = None if streaming else sum(map(len, parts.values()))
        if self.rows is not None and found not in (None, self.rows):
            warnings.warn(
                f"{self.hub_id} gave {found} rows for {self.name!r}, which has {self.rows}; figures on other rows "
                "cannot be compared with published ones",
                stacklevel=2,
            )
        return self.prepare(parts if len(self.hub) > 1 else parts[self.hub[0].part])

    def prepare(self, dataset: Any) -> Any:
        """Bring the benchmark, as the Hub has it, to the columns that evaluation reads. Prepare it once: crops add up.

        Args:
            dataset: a `datasets` Dataset or IterableDataset; for a benchmark of several, a mapping from part to data
                set.

        Returns:
            The same rows with the columns "image", "label" (a ClassLabel) and those that name groups.

        Raises:
            ValueError: if a column is missing or holds something else, or classes have to be passed first.
        """
        parts = [source.part for source in self.hub]
        if len(parts) == 1:
            if isinstance(dataset, Mapping):
                raise ValueError(
                    f"the data set for {self.name!r} is a dictionary with {sorted(dataset)}; pass its split "
                    f"{self.hub[0].split!r}"
                )
            return self._prepared(dataset)
        if not isinstance(dataset, Mapping) or set(dataset) != set(parts):
            given = sorted(dataset) if isinstance(dataset, Mapping) else type(dataset).__name__
            raise ValueError(
                f"{self.name!r} is put together of the data sets {parts}; pass a mapping with them, not {given}"
            )
        used = ["image", "label", *(column for column in self.group_columns if column != "label")]
        joined = []
        for part in parts:
            prepared = self._prepared(dataset[part])
            prepared = with_values(prepared, "source", ["label"], _Constant(part), Value("string"))
            joined.append(prepared.select_columns(used))
        return concatenate_datasets(joined)

    def _prepared(self, dataset: Any) -> Any:
        check_features(dataset, self.name)
        image = find_column(dataset, self.image_columns, self.name, "images")
        dataset = as_images(renamed(dataset, image, "image"), "image")
        for step in self.steps:
            dataset = step(dataset, self)
        label = find_column(dataset, self.label_columns, self.name, "labels")
        dataset = as_class_labels(renamed(dataset, label, "label"), "label", self.class_space().names)
        for column, names in self.group_names.items():
            if column in dataset.features:
                dataset = as_group_names(dataset, column, names)
        return dataset

    def evaluate(
        self,
        model: str | PathLike[str] | nn.Module,
        processor: Any = None,
        dataset: Any = None,
        *,
        head: nn.Linear | None = None,
        cache_dir: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> EvaluationResult:
        """Classify the benchmark's images zero-shot, or with a linear head.

        `score` gives the measure that papers report of the result.

        Args:
            model: a dual encoder, a Hub id or a path.
            processor: its processor; None loads it from where the model is from.
            dataset: what `load` or `prepare` returned; None loads it.
            head: a linear head over the labels, or over all of the classes that the labels are a part of.
            cache_dir: where downloads are kept.
            settings: further arguments of `evaluate_zero_shot`, in place of the benchmark's own.

        Raises:
            ValueError: if the data set was not prepared, or the head is over other classes.
        """
        if dataset is None:
            dataset = self.load(cache_dir)
        space = self.class_space()
        self._check_prepared(dataset, space)
        if head is None:
            class_names, mapping = space.for_zero_shot()
        else:
            class_names, mapping = space.for_head(getattr(head, "out_features", None))
        own = {
            "class_names": class_names,
            "class_mapping": mapping,
            # A head takes no prompts, so what they need is not asked for.
            **({"templates": self.prompts()} if head is None else {}),
            "group_column": self.group_columns or None,
            "training_shares": self.training_shares,
        }
        if settings.get("group_function") is not None:
            own["group_column"] = None
        return evaluate_zero_shot(model, processor, dataset, head=head, **{**own, **settings})

    def _check_prepared(self, dataset: Any, space: ClassSpace) -> None:
        check_features(dataset, self.name)
        missing = [column for column in ("image", "label", *self.group_columns) if column not in dataset.features]
        label = dataset.features.get("label")
        if missing or not isinstance(label, ClassLabel) or tuple(label.names) != space.names:
            what = f"it has no column {missing[0]!r}" if missing else "its labels do not have the benchmark's names"
            raise ValueError(f"the data set for {self.name!r} is not prepared: {what}; pass entry.prepare(dataset)")
        for column in self.group_names:
            if column in self.group_columns and getattr(dataset.features[column], "dtype", None) != "string":
                raise ValueError(
                    f"the data set for {self.name!r} is not prepared: column {column!r} does not hold the names of "
                    "groups; pass entry.prepare(dataset)"
                )

    def score(self, result: EvaluationResult) -> float:
        """The measure that papers report on this benchmark, from 0 to 1.

        Raises:
            ValueError: if `result` does not have it.
        """
        return METRICS[self.metric](result, self.ignored_groups)


@dataclass(frozen=True)
class _Constant:
    value: str

    def __call__(self, *_: Any) -> str:
        return self.value


def _counted(result: EvaluationResult, ignored: Sequence[str]) -> list[float]:
    accuracies = [accuracy for group, accuracy in result.group_accuracies.items() if group not in ignored]
    if not accuracies:
        raise ValueError(f"the result has only the groups {sorted(result.group_accuracies)}, none of which counts")
    return accuracies


def _worst(result: EvaluationResult, ignored: Sequence[str]) -> float:
    return min(_counted(result, ignored))


def _mean(result: EvaluationResult, ignored: Sequence[str]) -> float:
    accuracies = _counted(result, ignored)
    return sum(accuracies) / len(accuracies)


def _macro_f1(result: EvaluationResult, ignored: Sequence[str]) -> float:
    if result.macro_f1 is None:
        raise ValueError("the result has no macro F1, because an older version made it; evaluate again")
    return result.macro_f1


METRICS: dict[str, Callable[[EvaluationResult, Sequence[str]], float]] = {
    "accuracy": lambda result, ignored: result.accuracy,
    "worst_group_accuracy": _worst,
    "mean_group_accuracy": _mean,
    "macro_f1": _macro_f1,
}
