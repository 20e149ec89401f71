"""The classes of a benchmark, and those of the classifiers that are used for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from starft_hf.data.class_mapping import check_mapping
from starft_hf.utils.names import distinct_names


Mapped = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassSpace:
    """What the labels of a benchmark stand for.

    Attributes:
        names: names of the labels, in label order.
        classifier: names of the classifier's classes, where the benchmark has only some of them or merges them; empty
            where they are `names`.
        mapping: for every label the indices into `classifier`, of which the best counts; empty without `classifier`.

    Raises:
        ValueError: if names and mapping do not fit.
    """

    names: tuple[str, ...]
    classifier: tuple[str, ...] = ()
    mapping: Mapped = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", distinct_names(self.names))
        object.__setattr__(self, "classifier", distinct_names(self.classifier))
        object.__setattr__(self, "mapping", tuple(map(tuple, self.mapping)))
        if not self.names:
            raise ValueError("names is empty; pass the name of every class of the benchmark, in label order")
        if len(self.mapping) != (len(self.names) if self.classifier else 0):
            raise ValueError(
                f"got {len(self.names)} labels, {len(self.classifier)} classes of a classifier and a mapping of "
                f"{len(self.mapping)} labels; pass both classes and a mapping of every label, or neither"
            )
        check_mapping(self.mapping, self.classifier)

    def for_zero_shot(self) -> tuple[tuple[str, ...], Mapped | None]:
        """Class names and mapping of the zero-shot classifier, without classes that no label stands for."""
        if not self.mapping:
            return self.names, None
        used = sorted({index for indices in self.mapping for index in indices})
        mapping = tuple(tuple(map(used.index, indices)) for indices in self.mapping)
        return tuple(self.classifier[index] for index in used), mapping

    def for_head(self, size: int | None) -> tuple[tuple[str, ...], Mapped | None]:
        """Class names and mapping for a head with `size` outputs (None: unknown); a ValueError if it has others."""
        if self.mapping and size in (None, len(self.classifier)):
            return self.classifier, self.mapping
        if size in (None, len(self.names)):
            return self.names, None
        other = f" or {len(self.classifier)}" if self.classifier else ""
        raise ValueError(
            f"the head has {size} outputs, but the benchmark has {len(self.names)}{other} classes; pass a head over "
            "these, in their order"
        )


def classes_from_names(classes: Any) -> ClassSpace:
    """A class space from names in label order, or from a text file with one name per line."""
    if isinstance(classes, (str, PathLike)):
        path = Path(classes)
        if not path.is_file():
            raise FileNotFoundError(f"file not found: {str(path)!r}; pass a file of class names, one per line")
        classes = [line.strip() for line in path.read_text(encoding="utf-8").strip().splitlines()]
    if not isinstance(classes, Sequence):
        raise ValueError(f"classes is a {type(classes).__name__}; pass names in label order, or a file of them")
    for name in classes:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{name!r} is not a class name; pass a name for every label, in label order")
    return ClassSpace(tuple(classes))


def classes_from_hub(name: str, hub_id: str, file: str, num_classes: int) -> ClassSpace:
    """The classes of the benchmark `name`, from a file of one name per line in the repository of its images."""
    try:
        return classes_from_names(hf_hub_download(hub_id, file, repo_type="dataset"))
    except Exception as error:
        raise ValueError(
            f"the {num_classes} class names of {name!r} could not be read from {file} of {hub_id}: {error}. "
            f"Pass load_benchmark({name!r}, classes=...) with names in label order or a file of them, as published"
        ) from error
