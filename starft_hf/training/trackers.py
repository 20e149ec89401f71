"""What a run sends to W&B and Trackio at its end, beside what `Trainer` logs: accuracies by group, and the report."""

import importlib
import importlib.util
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TrackioCallback, WandbCallback, get_available_reporting_integrations
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
                    _send(self.trainer, name, run)
            except Exception as error:
                logger.warning("The results could not be sent to %s: %r. Nothing else is lost.", name, error)


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


def _open_run(name: str) -> Any:
    tracker = importlib.import_module(name)
    return tracker.run if name == "wandb" else tracker.context_vars.current_run.get()


def _send(trainer: Any, name: str, run: Any) -> None:
    """Send the table and the report; both packages have the same functions for that."""
    from starft_hf.report import RobustnessReport, Run, TrainingPoint

    tracker, args = importlib.import_module(name), trainer.args
    found = trainer.measured.of(trainer.model)
    if not found:
        return
    # Evaluation sets may have been named by their folders.
    before = {without_paths(name): result for name, result in trainer.measured.comparable(found).items()}
    after = {without_paths(name): result for name, result in found.items()}
    table = tracker.Table(dataframe=group_table(before, after))
    tracker.log({TABLE: table, "train/global_step": trainer.state.global_step})
    if not importlib.util.find_spec("matplotlib"):
        logger.warning("The report is not sent to %s: pip install 'starft_hf[report]'", name)
        return
    log = TrainingPoint.from_log_history(trainer.state.log_history)
    runs = [Run(trainer.setup.regularizer_name or _PLAIN, args.seed, after, log=log)]
    if before.keys() == after.keys():
        runs.insert(0, Run(BEFORE, args.seed, before))
    artifact = tracker.Artifact(f"{ARTIFACT}-{run.id}", type=ARTIFACT)
    with tempfile.TemporaryDirectory() as folder:
        # Without images, which may be private.
        about = about_run(args, trainer.model, trainer.train_dataset, trainer.class_names)
        RobustnessReport(runs, baseline=BEFORE, about=about).save(folder)
        for file in sorted(Path(folder).iterdir()):
            artifact.add_file(str(file), name=file.name)
        tracker.log_artifact(artifact)
