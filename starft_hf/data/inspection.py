"""What a dataset holds, split by split, as a run would read it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starft_hf.data.columns import ColumnSettings, ImageColumns, check_labels, read_column, resolve_columns
from starft_hf.data.duplicates import Duplicate, are_embedded, duplicates_across
from starft_hf.data.files import DataFound
from starft_hf.data.source import is_iterable
from starft_hf.utils.names import readable


_MOST_EXAMPLES = 20
_MOST_SHOWN = 3
# More images, and images that tables or archives hold, all of which would be read, are compared only if asked for.
MOST_COMPARED = 200_000


@dataclass(frozen=True)
class SplitSummary:
    """A split: its rows, those of every class and every group, and where they are from; None where it is not known."""

    rows: int | None
    classes: Mapping[str, int | None]
    groups: Mapping[str, int]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What a dataset holds: its splits, the columns that are used, what was not read, and what seems wrong with it."""

    splits: Mapping[str, SplitSummary]
    columns: ImageColumns
    left_out: Mapping[str, str]
    duplicates: tuple[Duplicate, ...] | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        groups = self.columns.groups
        own = [] if groups is None else list(groups.columns)
        return {
            "splits": {
                name: {
                    "rows": split.rows,
                    "classes": list(split.classes),
                    "groups": dict(split.groups),
                    "sources": list(split.sources),
                }
                for name, split in self.splits.items()
            },
            "left_out": {
                "count": len(self.left_out),
                "examples": [f"{path}: {why}" for path, why in list(self.left_out.items())[:_MOST_EXAMPLES]],
            },
            "columns": {
                "image": self.columns.image,
                "label": self.columns.label,
                "group": (own[0] if len(own) == 1 else own) or None,
                "caption": self.columns.caption,
            },
            "duplicates": None if self.duplicates is None else len(self.duplicates),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The same in lines of text."""
        width = max(map(len, self.splits))
        found = [f"{name:<{width}}  {_in_words(split)}" for name, split in self.splits.items()]
        used = {"image": self.columns.image, "label": self.columns.label, "caption": self.columns.caption}
        if self.columns.groups is not None:
            used["group"] = " x ".join(self.columns.groups.columns)
        found.append("columns: " + ", ".join(f"{what} {name!r}" for what, name in used.items() if name))
        if self.left_out:
            found.append(f"not read: {_counted(self.left_out)}")
        if self.duplicates:
            found.append(f"in several splits, with the same content: {_named(self.duplicates)}")
        elif self.duplicates is None:
            found.append("whether images occur in several splits was not checked; `starft inspect` does")
        return [*found, *self.notes]


def inspect_splits(
    found: DataFound, settings: ColumnSettings, train_split: str, *, compares: bool | None = None
) -> Inspection:
    """Count what every split holds, with the columns and classes of the training split.

    Args:
        found: the data.
        settings: of the columns; without `group_column`, groups are those that are usual for this kind of data.
        train_split: the split whose classes count.
        compares: whether to look for images that are in several splits; None: of files, unless there are very many.

    Raises:
        ValueError: if columns, labels or groups cannot be used for training.
    """
    if not settings.group_column and settings.group_function is None and found.group_columns:
        settings = replace(settings, group_column=list(found.group_columns))
    first = train_split if train_split in found.splits else next(iter(found.splits))
    training = resolve_columns(found.splits[first], settings, what=f"the split {first!r}")
    summaries, notes = {}, list(found.notes)
    if train_split not in found.splits and len(found.splits) > 1:
        notes.append(f"There is no split {train_split!r}: choose the one to train on with train_split.")
    for name, rows in sorted(found.splits.items(), key=lambda pair: pair[0] != first):
        what = f"the split {name!r}"
        columns = training
        if name != first:
            columns = resolve_columns(rows, replace(settings, training=training), what=what)
        check_labels(rows, columns, what=what, several=False)
        summaries[name] = _summary(rows, columns, found.sources.get(name, ()))
        notes += _missing(name, summaries[name], summaries[first])
    if training.class_names is not None and len(training.class_names) < 2:
        notes.append("There is only one class; training needs at least two.")
    images = sum(summary.rows or 0 for summary in summaries.values())
    if compares is None:
        compares = images <= MOST_COMPARED and not any(
            are_embedded(rows, training.image) for rows in found.splits.values()
        )
    duplicates = tuple(duplicates_across(found.splits, training.image)) if compares else None
    return Inspection(summaries, training, found.left_out, duplicates, tuple(notes))


def _summary(rows: Any, columns: ImageColumns, sources: tuple[str, ...]) -> SplitSummary:
    names = columns.class_names or ()
    if is_iterable(rows):
        return SplitSummary(None, dict.fromkeys(names), {}, sources)
    if columns.label is None:
        return SplitSummary(len(rows), {}, {}, sources)
    used = [name for name in columns.used if name not in (columns.image, columns.caption)]
    kinds = Counter(zip(*(map(_hashable, read_column(rows, name)) for name in used), strict=True))
    classes: Counter[str] = Counter(dict.fromkeys(names, 0))
    groups: Counter[str] = Counter()
    for values, number in kinds.items():
        row = dict(zip(used, values, strict=True))
        for index in columns.classes_of(row):
            classes[names[index]] += number
        if columns.several is None or columns.groups is not None:
            groups[columns.group_of(row)] += number
    return SplitSummary(len(rows), dict(classes), dict(sorted(groups.items())), sources)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _missing(name: str, split: SplitSummary, training: SplitSummary) -> list[str]:
    """What a split lacks or has beside the training split."""
    lacking = [f"class {one!r}" for one, number in split.classes.items() if number == 0]
    lacking += [f"group {one!r}" for one in training.groups if one not in split.groups and one not in split.classes]
    shown = ", ".join(lacking[:_MOST_SHOWN]) + (f" and {len(lacking) - _MOST_SHOWN} more" if len(lacking) > 3 else "")
    return [f"The split {name!r} has no images of {shown}."] if lacking and split.rows is not None else []


def _in_words(split: SplitSummary) -> str:
    parts = ["rows unknown" if split.rows is None else f"{split.rows:,} rows"]
    if split.classes:
        parts.append(f"{len(split.classes):,} classes ({_counts(split.classes)})")
    if set(split.groups) - set(split.classes):
        parts.append(f"{len(split.groups):,} groups ({_counts(split.groups)})")
    source = f", from {', '.join(split.sources[:_MOST_SHOWN])}" if split.sources else ""
    more = f" and {len(split.sources) - _MOST_SHOWN} more" if len(split.sources) > _MOST_SHOWN else ""
    return ", ".join(parts) + source + more


def _counts(counts: Mapping[str, int | None]) -> str:
    """The counts of a few, or the smallest and the largest of many."""
    pairs = [(readable(name), number) for name, number in counts.items()]
    if any(number is None for _, number in pairs) or len(pairs) <= 2 * _MOST_SHOWN:
        shown = [name if number is None else f"{name} {number:,}" for name, number in pairs[: 2 * _MOST_SHOWN]]
        return ", ".join(shown) + (", ..." if len(pairs) > 2 * _MOST_SHOWN else "")
    ordered = sorted(pairs, key=lambda pair: pair[1] or 0)
    (low, fewest), (high, most) = ordered[0], ordered[-1]
    return f"from {low} {fewest:,} to {high} {most:,}"


def _counted(left_out: Mapping[str, str]) -> str:
    reasons = Counter(left_out.values())
    parts = []
    for why, number in reasons.most_common():
        examples = [path for path, reason in left_out.items() if reason == why][:_MOST_SHOWN]
        parts.append(f"{number:,} because {why} ({', '.join(examples)}{', ...' if number > len(examples) else ''})")
    return "; ".join(parts)


def _named(duplicates: tuple[Duplicate, ...]) -> str:
    first = duplicates[0]
    example = " and ".join(f"{image} in {split}" for image, split in zip(first.images, first.splits, strict=True))
    return f"{len(duplicates):,} images, such as {example}"
