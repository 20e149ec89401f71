"""The runs of several reports under names that tell them apart."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from starft_hf.report.data import Run


_ZERO_SHOT = "zero-shot"


def names_of_files(files: Sequence[Path]) -> list[str]:
    """A name for each of several files: that of its folder, with as many parents as tell them apart.

    Files that are not called report.json go by their own names.
    """
    paths = [(file.parent if file.name == "report.json" else file.with_suffix("")).resolve() for file in files]
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(set(paths)):
        length += 1
    return ["/".join(path.parts[-length:]) for path in paths]


def combined(reports: Sequence[tuple[str, Sequence[Run]]], baseline: str = _ZERO_SHOT) -> list[Run]:
    """The runs of several reports, each given with its name.

    The zero-shot model and the baseline are one run if their accuracies agree in all reports. Of other methods, the
    only one of a report gets the report's name; of several, those that another report has as well get it as an
    addition. Reports of the same name hold seeds of the same models.
    """
    starts = {_ZERO_SHOT, baseline}
    found, same = [], set()
    for method in sorted(starts):
        own = [run for _, runs in reports for run in runs if run.method == method]
        if own and all(_accuracies(run) == _accuracies(own[0]) for run in own):
            found.append(own[0])
            same.add(method)
    several = len({name for name, _ in reports}) > 1
    for name, runs in reports:
        elsewhere = {run.method for other, more in reports if other != name for run in more}
        alone = len({run.method for run in runs} - starts) == 1
        for run in runs:
            if several and alone and run.method not in starts:
                found.append(replace(run, method=name))
            elif run.method not in same:
                found.append(replace(run, method=f"{run.method} ({name})") if run.method in elsewhere else run)
    return found


def _accuracies(run: Run) -> dict[str, dict[str, float]]:
    accuracies = {dataset: dict(result.group_accuracies) for dataset, result in run.classified.items()}
    return accuracies | {
        dataset: run.results[dataset].headline for dataset in run.results if dataset not in accuracies
    }
