"""A benchmark: where it is, how to read it, and how it is measured."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from datasets import Dataset, Image, Value, concatenate_datasets, load_dataset
from torch import nn

from starft_hf.data.layouts.split_names import TEST
from starft_hf.evaluation.catalog.classes import ClassSpace, classes_from_names
from starft_hf.evaluation.catalog.columns import as_class_labels, as_group_names, rename_first, with_values
from starft_hf.evaluation.catalog.folders import FOLDERS, Splits
from starft_hf.evaluation.evaluate import evaluate_zero_shot
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.utils.names import unknown_name


METRICS = ("accuracy", "worst_group_accuracy", "mean_group_accuracy", "macro_f1")


@dataclass(frozen=True)
class HubSource:
    """A split of a dataset on the Hub.

    Attributes:
        hub_id: the repository.
        split: the split.
        config: the configuration; None: the default one.
        data_files: pattern of the files of the split, so that those of others are not downloaded; None: all.
        part: the value of the column "source" for its rows, in benchmarks made of several datasets.
    """

    hub_id: str
    split: str
    config: str | None = None
    data_files: str | None = None
    part: str = ""

    def load(self, cache_dir: str | PathLike[str] | None) -> Any:
        """The split as the Hub has it."""
        files = None if self.data_files is None else {self.split: self.data_files}
        folder = None if cache_dir is None else str(cache_dir)
        return load_dataset(self.hub_id, self.config, data_files=files, split=self.split, cache_dir=folder)


@dataclass(frozen=True)
class BenchmarkEntry:
    """A benchmark of robust classification.

    Attributes:
        name: its name for `load_benchmark`.
        title: its name in papers.
        hub: where the images of its evaluation split are; several sources are concatenated.
        evaluation_split: the split that it is measured on.
        hub_splits: its other splits, and what the repository calls them.
        root: the folder to read it from, instead of the Hub.
        classes: its classes, or a function that looks them up or raises an error that says what is missing.
        num_classes: how many.
        templates: prompts of the zero-shot classifier, or a function that looks them up.
        metric: the measure that papers report, one of `METRICS`.
        image_columns: columns the images may be in; the first that exists is used.
        label_columns: the same for the labels.
        steps: functions that further prepare the dataset of the benchmark, before labels and groups get their names.
        group_columns: columns of the prepared dataset whose values name a row's group; empty: the classes.
        group_names: names of the values of group columns.
        ignored_groups: groups that the measure skips.
        training_sizes: rows of every group in the training set, where group-adjusted accuracy is usual.
        rows: how many images the evaluation split has.
        split_rows: how many the others have.
        read_classes: makes the class space from the argument `classes` of `load_benchmark`.
        license_note: on what terms the images can be had, as far as seen.
        sources: the paper and other sources of these facts.
        notes: what to know before comparing.
        checked: the day the columns were last compared with the Hub; None: never.

    Raises:
        ValueError: if the metric is unknown, or names are given for a column that is not a group column.
    """

    name: str
    title: str
    hub: tuple[HubSource, ...]
    classes: ClassSpace | Callable[[], ClassSpace]
    num_classes: int
    templates: tuple[str, ...] | Callable[[], tuple[str, ...]]
    metric: str
    evaluation_split: str = TEST
    hub_splits: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    image_columns: tuple[str, ...] = ("image",)
    label_columns: tuple[str, ...] = ("label",)
    steps: tuple[Callable[[Any, "BenchmarkEntry"], Any], ...] = ()
    group_columns: tuple[str, ...] = ()
    group_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ignored_groups: tuple[str, ...] = ()
    training_sizes: Mapping[str, int] = field(default_factory=dict)
    rows: int | None = None
    split_rows: Mapping[str, int] = field(default_factory=dict)
    read_classes: Callable[[Any], ClassSpace] = classes_from_names
    license_note: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""
    checked: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(unknown_name("metric", self.metric, METRICS))
        for column in self.group_names:
            if column not in self.group_columns:
                raise ValueError(unknown_name(f"group column of {self.name!r}", column, self.group_columns))

    def class_space(self) -> ClassSpace:
        """The classes; an ImportError if they need a missing library, a ValueError if they have to be passed."""
        return self.classes() if callable(self.classes) else self.classes

    def prompts(self) -> tuple[str, ...]:
        """The prompts of the zero-shot classifier."""
        return self.templates() if callable(self.templates) else self.templates

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that `load` can read."""
        if self.root is None:
            return (*self.hub_splits, self.evaluation_split)
        return tuple(self._in_folder)

    def load(self, cache_dir: str | PathLike[str] | None = None, *, split: str | None = None) -> Any:
        """Read and `prepare` a split, with a warning if the number of its rows is not that of the benchmark.

        Args:
            cache_dir: where downloads are kept; None: where `datasets` keeps them.
            split: one of `splits`; None: the one that the benchmark is measured on. All have the same classes.

        Raises:
            ValueError: if there is no such split, or the folder of the benchmark holds something else.
        """
        # Raises for missing classes before gigabytes are downloaded.
        self.class_space()
        split = split or self.evaluation_split
        if split not in self.splits:
            where = "on the Hub" if self.root is None else f"in {str(self.root)!r}"
            raise ValueError(unknown_name(f"split of {self.name!r} {where}", split, self.splits))
        if self.root is not None:
            rows = Dataset.from_pandas(self._in_folder[split], preserve_index=False).cast_column("image", Image())
            self._check_rows(len(rows), split, str(self.root))
            return self._prepared(rows, self.hub[0])
        sources = self.hub
        if split != self.evaluation_split:
            sources = tuple(replace(source, split=self.hub_splits[split]) for source in sources)
        parts = {source.part: source.load(cache_dir) for source in sources}
        self._check_rows(sum(map(len, parts.values())), split, "the Hub")
        return self.prepare(parts if len(sources) > 1 else parts[sources[0].part])

    @cached_property
    def _in_folder(self) -> Splits:
        assert self.root is not None
        try:
            return FOLDERS[self.name].splits(self.root, self.class_space())
        except ValueError as error:
            raise ValueError(f"{self.name!r} cannot be read from {str(self.root)!r}: {error}") from error

    def _check_rows(self, found: int, split: str, where: str) -> None:
        expected = self.rows if split == self.evaluation_split else self.split_rows.get(split)
        if expected not in (None, found):
            warnings.warn(
                f"{where} has {found} rows for {self.name!r}, whose {split} split has {expected}; figures on other "
                "rows cannot be compared with published ones",
                stacklevel=3,
            )

    def prepare(self, dataset: Any) -> Any:
        """Bring the benchmark, as the Hub has it, to the columns that evaluation reads. Prepare it once: crops add up.

        Args:
            dataset: a `datasets` Dataset; for a benchmark of several, a mapping from part to Dataset.

        Returns:
            The same rows with the columns "image", "label" (a ClassLabel) and those that name groups.

        Raises:
            ValueError: if a column is missing or holds something else, or classes have to be passed first.
        """
        if len(self.hub) == 1:
            return self._prepared(dataset, self.hub[0])
        parts = [source.part for source in self.hub]
        found = sorted(dataset) if isinstance(dataset, Mapping) else f"a {type(dataset).__name__}"
        if found != sorted(parts):
            raise ValueError(f"the dataset for {self.name!r} is {found}; pass a mapping with {parts}")
        used = list(dict.fromkeys(("image", "label", *self.group_columns)))
        return concatenate_datasets(
            [self._prepared(dataset[source.part], source).select_columns(used) for source in self.hub]
        )

    def _prepared(self, dataset: Any, source: HubSource) -> Dataset:
        if not isinstance(dataset, Dataset):
            found = type(dataset).__name__
            raise ValueError(f"the dataset for {self.name!r} is a {found}; pass its split {source.split!r}, a Dataset")
        dataset = rename_first(dataset, self.image_columns, "image", self.name)
        # Some repositories hold encoded bytes.
        feature = dataset.features["image"]
        if isinstance(feature, dict) or getattr(feature, "dtype", "") in ("binary", "large_binary"):
            dataset = dataset.cast_column("image", Image())
        for step in self.steps:
            dataset = step(dataset, self)
        dataset = rename_first(dataset, self.label_columns, "label", self.name)
        dataset = as_class_labels(dataset, "label", self.class_space().names)
        for column, names in self.group_names.items():
            dataset = as_group_names(dataset, column, names, self.name)
        if source.part:
            dataset = with_values(dataset, "source", "label", lambda _: source.part, Value("string"))
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
        """Classify the images zero-shot or with a linear head; `score` reads the benchmark's measure from the result.

        Args:
            model: a dual encoder, a Hub id or a path.
            processor: its processor; None loads it from where the model is from.
            dataset: the return value of `load` or `prepare`; None loads it.
            head: a linear head over the labels, or over all of the classes that the labels are a part of.
            cache_dir: where downloads are kept.
            settings: further arguments of `evaluate_zero_shot`, in place of the benchmark's own.

        Raises:
            ValueError: if the dataset was not prepared, or the head is over other classes.
        """
        if dataset is None:
            dataset = self.load(cache_dir)
        space = self.class_space()
        self._check_prepared(dataset, space)
        names, mapping = space.for_zero_shot() if head is None else space.for_head(getattr(head, "out_features", None))
        own: dict[str, Any] = {"class_names": names, "class_mapping": mapping}
        own["training_shares"] = self.training_sizes or None
        if settings.get("group_function") is None:
            own["group_column"] = self.group_columns or None
        if head is None:
            own["templates"] = self.prompts()
        result = evaluate_zero_shot(model, processor, dataset, head=head, **{**own, **settings})
        # Benchmarks have one class per image.
        return cast(EvaluationResult, result)

    def _check_prepared(self, dataset: Any, space: ClassSpace) -> None:
        features = getattr(dataset, "features", None) or {}
        if getattr(features.get("label"), "names", None) != list(space.names):
            problem = "its labels do not have the benchmark's names"
        elif unnamed := [name for name in self.group_names if getattr(features.get(name), "dtype", "") != "string"]:
            problem = f"column {unnamed[0]!r} does not hold the names of groups"
        else:
            return
        raise ValueError(f"the dataset for {self.name!r} is not prepared: {problem}; pass entry.prepare(dataset)")

    def score(self, result: EvaluationResult) -> float:
        """The measure that papers report on this benchmark, from 0 to 1; a ValueError if `result` does not have it."""
        if self.metric == "accuracy":
            return result.accuracy
        if self.metric == "macro_f1":
            if result.macro_f1 is None:
                raise ValueError("the result has no macro F1; evaluate again")
            return result.macro_f1
        counted = [value for group, value in result.group_accuracies.items() if group not in self.ignored_groups]
        if not counted:
            raise ValueError(f"the result has only the groups {sorted(result.group_accuracies)}, none of which counts")
        return min(counted) if self.metric == "worst_group_accuracy" else fmean(counted)
