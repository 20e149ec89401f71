"""What W&B and Trackio get beside what `Trainer` logs: accuracies and reports, of one run or of several."""

import copy
import importlib
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import (
    TrackioCallback,
    WandbCallback,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import logging

from starft_hf.evaluation.results import EvaluationResult
from starft_hf.hub.model_card import BEFORE
from starft_hf.training.about import about_run
from starft_hf.utils.collectives import world_size
from starft_hf.utils.names import unknown_name
from starft_hf.utils.text import without_paths


logger = logging.get_logger(__name__)

TABLE, ARTIFACT = "eval/groups", "report"
# By the names of their packages.
_TRACKERS = {"wandb": WandbCallback, "trackio": TrackioCallback}
_PLAIN = "plain fine-tuning"


class TrackerReport(TrainerCallback):
    """Sends the accuracies of all groups and the report to the runs that `Trainer` has opened; it opens none itself.

    The model is evaluated for it, unless it was after its last step. A tracker that fails is warned of.

    Args:
        trainer: the `StarFTTrainer`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        callbacks = self.trainer.callback_handler.callbacks
        names = [name for name, kind in _TRACKERS.items() if any(isinstance(one, kind) for one in callbacks)]
        # Not of a training that was interrupted.
        if not names or not self.trainer.is_in_train:
            return
        try:
            self.trainer.evaluate_trained()
        except Exception as error:
            if world_size() > 1:
                # The other processes wait for this one.
                raise
            logger.warning("The model could not be evaluated at the end of its training: %s", error)
        for name in names if state.is_world_process_zero else ():
            try:
                run = _open_run(name)
                if name == "trackio" and run is not None and args.run_name is None:
                    # Its callback closes the run, and what is logged after training would open one of another name.
                    args.run_name = run.name
                if run is not None:
                    _send_run(self.trainer, name, run)
            except Exception as error:
                _warn_of_failure(name, error)


def check_trackers(report_to: Sequence[str]) -> None:
    """Raise ValueError if a tracker is unknown to `Trainer`, or its package is not installed."""
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(unknown_name("report_to", name, INTEGRATION_TO_CALLBACK))
        if name in _TRACKERS and name not in get_available_reporting_integrations():
            raise ValueError(f"report_to={name!r} needs a package that is not installed: pip install {name}")


def report_to_trackers(trainer: Any) -> None:
    """Give a trainer a `TrackerReport`, before the callbacks of trackers, which close their runs after training."""
    # Weakly, so that a trainer is freed with its last name.
    trainer.callback_handler.callbacks.insert(0, TrackerReport(weakref.proxy(trainer)))


def group_table(before: Mapping[str, EvaluationResult], after: Mapping[str, EvaluationResult]) -> pd.DataFrame:
    """The accuracy of every group of every dataset, after training and, where it is known, before."""
    rows = []
    for name, result in after.items():
        for group, accuracy in result.group_accuracies.items():
            row = {"dataset": name, "group": group, "images": result.group_sizes[group], "accuracy": accuracy}
            if name in before:
                start = before[name].group_accuracies[group]
                row |= {"accuracy before training": start, "change": accuracy - start}
            rows.append(row)
    return pd.DataFrame(rows)


@contextmanager
def own_run(trainer: Any, name: str) -> Iterator[None]:
    """Lets a training that is one of several be a run of its own in trackers, by the name of all and its own.

    What the trainer evaluates afterwards, of other models, is not logged. A run of W&B that is open is used, and stays
    open.
    """
    args = trainer.args
    args.run_name = f"{args.run_name}: {name}"
    ours = [tracker for tracker in _TRACKERS if tracker in args.report_to and _open_run(tracker) is None]
    try:
        yield
    finally:
        remove_trackers(trainer)
        for tracker in ours:
            _finish(tracker)


def remove_trackers(trainer: Any) -> None:
    """Log nothing more of a trainer to trackers."""
    for kind in get_reporting_integration_callbacks(trainer.args.report_to):
        trainer.remove_callback(kind)


def warn_of_trackers(args: TrainingArguments, what: str) -> None:
    """Warn of trackers that get the runs of `what`, and not its result."""
    if others := [name for name in args.report_to if name not in _TRACKERS]:
        logger.warning(
            "%s logs every training to %s, but its tables and its report only to %s; save the result that it returns.",
            what,
            " and ".join(others),
            " and ".join(_TRACKERS),
        )


def send_results(
    args: TrainingArguments, name: str, tables: Mapping[str, pd.DataFrame], save: Callable[[str], Any]
) -> None:
    """Send the result of several runs to W&B and Trackio, as a run of its own. A tracker that fails is warned of.

    Args:
        args: the settings that the runs share.
        name: of that run, unless one is open.
        tables: by name.
        save: writes the files of the report into a folder.
    """
    if args.process_index != 0:
        return
    for tracker in [name for name in _TRACKERS if name in args.report_to]:
        opened = None
        try:
            if (run := _open_run(tracker)) is None:
                run = opened = _start(tracker, args, name)
            _send(tracker, run, {f"eval/{what}": table for what, table in tables.items()}, save)
        except Exception as error:
            _warn_of_failure(tracker, error)
        finally:
            if opened is not None:
                _finish(tracker)


def without_folders(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results by names of evaluation sets without paths, by which they may have been named."""
    return {without_paths(name): result for name, result in results.items()}


def _start(tracker: str, args: TrainingArguments, name: str) -> Any:
    """Open a run of no model, in the project that `Trainer` uses."""
    if tracker == "wandb":
        project = os.getenv("WANDB_PROJECT", "huggingface")
        return importlib.import_module(tracker).init(project=project, name=name)
    own = copy.copy(args)
    own.run_name = name
    TrackioCallback().setup(own, TrainerState(), None)
    return _open_run(tracker)


def _finish(tracker: str) -> None:
    try:
        if _open_run(tracker) is not None:
            importlib.import_module(tracker).finish()
    except Exception as error:
        _warn_of_failure(tracker, error)


def _open_run(name: str) -> Any:
    tracker = importlib.import_module(name)
    return tracker.run if name == "wandb" else tracker.context_vars.current_run.get()


def _warn_of_failure(tracker: str, error: Exception) -> None:
    logger.warning("The results could not be sent to %s: %r. Nothing else is lost.", tracker, error)


def _send(name: str, run: Any, content: Mapping[str, Any], save: Callable[[str], Any]) -> None:
    """Log `content`, and the files that `save` writes; both packages have the same functions for that."""
    tracker = importlib.import_module(name)
    tracker.log(
        {what: tracker.Table(dataframe=one) if isinstance(one, pd.DataFrame) else one for what, one in content.items()}
    )
    artifact = tracker.Artifact(f"{ARTIFACT}-{run.id}", type=ARTIFACT)
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(folder)
        except ImportError as error:
            logger.warning("The report is not sent to %s: %s", name, error)
            return
        for file in sorted(Path(folder).iterdir()):
            artifact.add_file(str(file), name=file.name)
        tracker.log_artifact(artifact)


def _send_run(trainer: Any, name: str, run: Any) -> None:
    """Send the table of groups and the report of a trainer."""
    from starft_hf.report import RobustnessReport, Run, TrainingPoint

    args = trainer.args
    found = trainer.measured.of(trainer.model)
    if not found:
        return
    before, after = without_folders(trainer.measured.comparable(found)), without_folders(found)
    log = TrainingPoint.from_log_history(trainer.state.log_history)
    runs = [Run(trainer.setup.regularizer_name or _PLAIN, args.seed, after, log=log)]
    if before.keys() == after.keys():
        runs.insert(0, Run(BEFORE, args.seed, before))
    # Without images, which may be private.
    about = about_run(args, trainer.model, trainer.train_dataset, trainer.class_names)
    report = RobustnessReport(runs, baseline=BEFORE, about=about)
    _send(name, run, {TABLE: group_table(before, after), "train/global_step": trainer.state.global_step}, report.save)
