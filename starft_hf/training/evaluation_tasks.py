"""What is measured of every evaluation set, and whether the settings fit it; known before anything is loaded."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from transformers.utils import logging

from starft_hf.data.examples import Examples
from starft_hf.data.retrieval import AUTO, CLASSIFICATION, RETRIEVAL, retrieval_columns
from starft_hf.data.streams import warn_of_repeated_rows
from starft_hf.evaluation.results import MEAN_RECALL, RECALLS
from starft_hf.hub.record import MULTI_LABEL
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

# The name of an evaluation set that is not one of several.
SINGLE = "eval_dataset"

# What a trainer logs of images that are classified, beside accuracies of groups.
_FIGURES = ("loss", "accuracy", "worst_group_accuracy", "group_adjusted_accuracy", "ece")
# What else a trainer logs of an evaluation.
_SPEED = ("runtime", "samples_per_second", "steps_per_second", "skipped_images")


def evaluation_tasks(args: Any, eval_dataset: Any, class_mapping: Any = None) -> dict[str, str]:
    """The task of every evaluation set, "classification" or "retrieval", by its name.

    Raises:
        ValueError: if a set does not have what `eval_task` needs, or a row of one for retrieval has no caption.
    """
    sets = eval_dataset if isinstance(eval_dataset, dict) else {SINGLE: eval_dataset}
    mapped = class_mapping if isinstance(eval_dataset, dict) else {SINGLE: class_mapping}
    tasks = {}
    for name, dataset in sets.items():
        if dataset is None:
            continue
        warn_of_repeated_rows(dataset, args.dataloader_num_workers, _called(name))
        is_mapped = (mapped or {}).get(name) is not None
        if is_mapped and args.eval_task == RETRIEVAL:
            raise ValueError(
                "class_mapping says what labels stand for, and eval_task='retrieval' does not use labels; leave one "
                "of them out"
            )
        if isinstance(dataset, Examples):
            columns = dataset.columns if dataset.columns.label is None else None
        else:
            task = CLASSIFICATION if is_mapped else args.eval_task
            columns = retrieval_columns(dataset, args.column_settings(), task, what=_called(name))
        tasks[name] = CLASSIFICATION if columns is None else RETRIEVAL
    return tasks


def check_labeled_sets(args: Any, sets: Mapping[str, Any]) -> None:
    """Check that none of the sets that something is chosen by is evaluated by retrieval."""
    for name, task in evaluation_tasks(args, dict(sets)).items():
        if task == RETRIEVAL:
            raise ValueError(
                f"{_called(name)} is evaluated by retrieval, and tune chooses by the accuracy of groups or classes; "
                "pass a validation set with labels, or set eval_task='classification'"
            )


def check_best_metric(args: Any, tasks: Mapping[str, str], has_own_metrics: bool = False) -> None:
    """Check that `metric_for_best_model` is a metric of one of the evaluation sets, as far as these are known.

    Of sets whose images are classified it may be the user's own, by `compute_metrics` or a subclass.
    """
    metric = args.metric_for_best_model
    if metric is None or not tasks:
        return
    name, measure = _parts(metric.removeprefix("eval_"), tasks)
    if name is None:
        # What is chosen by a test set cannot be measured on it.
        named = sorted((name for name in tasks if "test" not in name), key=lambda name: not _is_validation(name))
        advice = (
            f"name one that is not for testing, as in 'eval_{named[0]}_{_usual(tasks[named[0]])}'"
            if named
            else "add a validation set to them, as eval_dataset={'validation': ..., 'test': ...} or, on the command "
            "line, by --eval_split validation test, and name it as in 'eval_validation_worst_group_accuracy'"
        )
        raise ValueError(
            f"metric_for_best_model is {metric!r}, which is not a metric of any of the evaluation sets {list(tasks)}; "
            f"{advice}"
        )
    known = (*RECALLS, MEAN_RECALL)
    if tasks[name] == RETRIEVAL and measure not in (*known, *_SPEED):
        raise ValueError(
            f"metric_for_best_model is {metric!r}, and {_called(name)} is evaluated by retrieval, without labels: "
            f"{unknown_name('metric', measure, known)} Set metric_for_best_model='{_prefixed(name)}{MEAN_RECALL}', or "
            "set eval_task='classification'"
        )
    if tasks[name] == CLASSIFICATION and measure in known:
        raise ValueError(
            f"metric_for_best_model is {metric!r}, and the images of {_called(name)} are classified; set "
            "eval_task='retrieval', or pass it without its labels to have it evaluated by retrieval"
        )
    if tasks[name] == CLASSIFICATION and not has_own_metrics and args.base_loss != MULTI_LABEL:
        meant = get_close_matches(measure, _FIGURES, 1, cutoff=0.75)
        if measure not in (*_FIGURES, *_SPEED) and not measure.startswith("accuracy_") and meant:
            raise ValueError(
                f"metric_for_best_model is {metric!r}, which is not a metric of {_called(name)}; did you mean "
                f"'{_prefixed(name)}{meant[0]}'?"
            )


def warn_of_unused(args: Any, tasks: Mapping[str, str]) -> None:
    """Warn of settings that only matter where images are classified, if there is no such evaluation set."""
    if not tasks or CLASSIFICATION in tasks.values():
        if not tasks and args.eval_task != AUTO:
            logger.warning_once(f"eval_task={args.eval_task!r} has no effect without an evaluation set.")
        return
    unused = {"group_column": args.group_column, "eval_templates": args.eval_templates}
    for name, value in unused.items():
        if value:
            logger.warning_once(f"{name}={value!r} has no effect on retrieval, and no evaluation set is classified.")


def _parts(metric: str, names: Iterable[str]) -> tuple[str | None, str]:
    """The evaluation set that a metric is of, None if there is none, and the metric of it."""
    names = list(names)
    if names == [SINGLE]:
        return SINGLE, metric
    found = [name for name in names if metric.startswith(f"{name}_")]
    name = max(found, key=len, default=None)
    return name, metric if name is None else metric[len(name) + 1 :]


def _called(name: str) -> str:
    return name if name == SINGLE else f"{SINGLE} {name!r}"


def _prefixed(name: str) -> str:
    return "eval_" if name == SINGLE else f"eval_{name}_"


def _usual(task: str) -> str:
    return MEAN_RECALL if task == RETRIEVAL else "worst_group_accuracy"


def _is_validation(name: str) -> bool:
    return name.startswith(("val", "dev"))
