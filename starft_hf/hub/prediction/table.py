"""The table of predictions: its columns, and the files it is written to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from torch import Tensor

from starft_hf.utils.files import check_writable, file_in_place_of
from starft_hf.utils.names import readable


_ENDINGS = (".csv", ".parquet", ".jsonl")
FILE, ROW, PREDICTION, LABEL, GROUP, SPLIT = "file", "row", "prediction", "label", "group", "split"
# All classes of an image that may have several.
PREDICTIONS = "predictions"


def top_classes(probabilities: Tensor, top_k: int) -> Tensor:
    """For every row of `probabilities`, `(N, classes)`, the `top_k` largest and then their classes, `(N, 2 * top_k)`.

    Of equal ones the class that comes first is first.
    """
    values, classes = probabilities.double().sort(dim=-1, descending=True, stable=True)
    return torch.cat([values[:, :top_k], classes[:, :top_k].double()], dim=1)


def table_of(
    names: Sequence[str] | None,
    rows: Tensor,
    class_names: Sequence[str],
    known: Mapping[str, Sequence[str | None]],
    top_k: int,
    *,
    multi_label: bool = False,
) -> Dataset:
    """The table of predictions.

    Args:
        names: the files of the rows; None numbers the rows.
        rows: `(N, 2 * kept)`, as `top_classes` gives them; NaN for images that could not be read.
        class_names: the names of the classes.
        known: further columns of strings, by name.
        top_k: how many classes to name, at most as many as are kept.
        multi_label: whether images may have several classes, of which all are kept: those of at least 0.5 are named in
            a column of their own, with bars between.
    """
    kept = rows.shape[1] // 2
    columns: dict[str, list[Any]] = {ROW: list(range(len(rows)))} if names is None else {FILE: list(names)}
    types: dict[str, str] = dict.fromkeys(columns, "int64" if names is None else "string")
    for place in range(top_k):
        name = PREDICTION if place == 0 else f"top_{place + 1}"
        score = "confidence" if place == 0 else f"{name}_confidence"
        scores, classes = rows[:, place].tolist(), rows[:, kept + place].tolist()
        # NaN is not equal to itself.
        columns[name] = [class_names[int(index)] if index == index else None for index in classes]
        columns[score] = [value if value == value else None for value in scores]
        types |= {name: "string", score: "float64"}
        if multi_label and place == 0:
            columns[PREDICTIONS], types[PREDICTIONS] = [_likely(row, class_names) for row in rows.tolist()], "string"
    for name, values in known.items():
        columns[name], types[name] = list(values), "string"
    return Dataset.from_dict(columns, features=Features({name: Value(kind) for name, kind in types.items()}))


def _likely(row: Sequence[float], class_names: Sequence[str]) -> str | None:
    """The classes of an image with a probability of at least 0.5, in their order; None if it could not be read."""
    kept = len(row) // 2
    if row[0] != row[0]:
        return None
    found = sorted(int(index) for score, index in zip(row[:kept], row[kept:], strict=True) if score >= 0.5)
    return "|".join(class_names[index] for index in found)


def accuracy_of(table: Dataset, class_names: Sequence[str]) -> float | None:
    """The share of labeled rows whose prediction is their label; None unless all labels are classes of the model.

    Underscores in names count as spaces. Rows without a prediction do not count. None for images of several classes.
    """
    if LABEL not in table.column_names or PREDICTIONS in table.column_names:
        return None
    pairs = zip(table[LABEL][:], table[PREDICTION][:], strict=True)
    known = [(readable(label), readable(found)) for label, found in pairs if label is not None and found is not None]
    if not known or not {label for label, _ in known} <= set(map(readable, class_names)):
        return None
    return sum(label == found for label, found in known) / len(known)


def check_output(output: Path, overwrite: bool) -> None:
    """Check, before anything is loaded, that a table can be written to a file.

    Raises:
        ValueError: if its ending is not that of a known kind.
        FileExistsError: if it exists and is not to be overwritten.
        OSError: if nothing can be written there.
    """
    if output.suffix.lower() not in _ENDINGS:
        raise ValueError(f"output is {str(output)!r}; its name must end with {', '.join(_ENDINGS[:-1])} or .jsonl")
    check_writable(output, "output", is_file=True)
    if output.is_dir():
        raise ValueError(f"output is {str(output)!r}, which is a folder; pass the name of a file")
    if output.exists() and not overwrite:
        raise FileExistsError(f"output {str(output)!r} exists; pass another file, or overwrite=True to replace it")


def write_table(table: Dataset, output: Path) -> None:
    """Write a table to a .csv, .parquet or .jsonl file, all or nothing."""
    with file_in_place_of(output) as temporary:
        if output.suffix.lower() == ".parquet":
            table.to_parquet(str(temporary))
        elif output.suffix.lower() == ".csv":
            table.to_pandas().to_csv(temporary, index=False, compression=None, lineterminator="\n")
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
