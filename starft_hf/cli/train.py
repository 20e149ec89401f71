"""`starft train`."""

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from starft_hf.cli.arguments import (
    TrainingParser,
    adapter_of,
    build,
    check_required,
    option,
    settings_of,
    training_parser,
)
from starft_hf.cli.command import check_output, refuse, warn
from starft_hf.cli.effects import warn_of_no_effect
from starft_hf.cli.launch import (
    LaunchArguments,
    launch,
    launched,
    launched_by_user,
    launcher_flags,
    report_exit_code,
)
from starft_hf.cli.output import show
from starft_hf.utils.files import check_writable


# A worst group that falls by less may do so by chance.
_NOTICED = 0.01

SUMMARY = "fine-tune a model with StarFT, and report its robustness before and after"


@dataclass
class TrainArguments(LaunchArguments):
    """The arguments of `train` alone."""

    resume: bool = option(False, "Resume from the last valid checkpoint in output_dir, if there is one.")


def make_parser(prog: str) -> TrainingParser:
    return training_parser(prog, SUMMARY, TrainArguments)


def run(options: argparse.Namespace) -> int | None:
    from starft_hf.training.checkpointing.interruption import INTERRUPTED, TrainingInterrupted, ended_by_sigterm
    from starft_hf.utils.processes import end_with_launcher

    check_required(options)
    own = build(TrainArguments, options)
    if options.resume_from_checkpoint is not None:
        refuse(options, ["resume"], "--resume_from_checkpoint chooses the checkpoint")
    elif own.resume:
        options.resume_from_checkpoint = "last"
    if launched_by_user():
        names = [part.name for part in fields(LaunchArguments)]
        refuse(options, names, "the processes were started by accelerate or torchrun already")
    if not launched():
        flags = launcher_flags(own)
        if not options.resume_from_checkpoint:
            check_output(Path(options.output_dir), "--output_dir", ", or continue with --resume")
        if flags:
            # Wrong settings are reported once, before anything starts.
            settings_of(options)
            adapter_of(options)
            return launch(options.command_line, flags)
    end_with_launcher()
    try:
        with ended_by_sigterm():
            _run(options)
    except TrainingInterrupted as interrupted:
        report_exit_code(INTERRUPTED)
        if interrupted.checkpoint is None:
            print(f"starft train: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    return None


def _run(options: argparse.Namespace) -> None:
    # A function of its own, because nothing may refer to the trainer any more when the process group is destroyed.
    from starft_hf import StarFTTrainer
    from starft_hf.cli.data import load_training_data, run_arguments
    from starft_hf.training.unused_settings import without_unused

    args, arguments = settings_of(options), run_arguments(options)
    warn_of_no_effect(options, [args])
    if args.should_save:
        # Whatever save_strategy is, since the model is saved at the end.
        check_writable(args.output_dir, "output_dir")
    data = load_training_data(options)
    # The data may say which columns have groups or captions.
    args = without_unused(settings_of(options), options.spuriosity)
    train, evaluation = data.train, data.evaluation
    if not evaluation:
        warn(options, _unevaluated(options))
    try:
        trainer = StarFTTrainer(args=args, train_dataset=train, eval_dataset=evaluation or None, **arguments)
    except ValueError as error:
        # Of the settings that Trainer refuses, too.
        raise argparse.ArgumentTypeError(str(error)) from error
    trainer.held_out = data.held_out or None
    runs = _train(trainer, options)
    if trainer.args.should_save:
        _report(trainer, runs, evaluation, options)


def _unevaluated(options: argparse.Namespace) -> str:
    return (
        f"{options.dataset} has no split with labels or captions for evaluation (test or validation), so nothing is "
        "evaluated and no report is written; pass --eval_split or --eval_dataset"
    )


@dataclass(frozen=True)
class _Results:
    """A model with its results, where images may have several classes."""

    method: str
    seed: int
    results: dict[str, Any]
    log: Any = ()


def _train(trainer: Any, options: argparse.Namespace) -> list[Any]:
    from starft_hf.hub.model_card import BEFORE
    from starft_hf.hub.record import RECORD_FILE
    from starft_hf.report import Run, TrainingPoint
    from starft_hf.training.checkpointing.files import CheckpointError
    from starft_hf.training.comparison import evaluation_results
    from starft_hf.training.methods import ZERO_SHOT

    args, resume = trainer.args, options.resume_from_checkpoint
    resume = True if resume in ("last", "true", "True") else resume
    try:
        # Before any evaluation, which takes time.
        trainer.checkpoint_to_resume(resume)
    except CheckpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    choice = trainer.setup.plan.choice_in_words(args, trainer.setup.reg_weight)
    if choice is not None and args.should_save:
        print(choice, file=sys.stderr, flush=True)
    evaluates = trainer.eval_dataset is not None
    # A model that a run has saved is not a zero-shot one.
    start = BEFORE if (Path(options.model) / RECORD_FILE).is_file() else ZERO_SHOT
    # Reports are of accuracies.
    kind: Any = _Results if args.base_loss == "multi_label" else Run
    runs = [kind(start, args.seed, evaluation_results(trainer))] if evaluates else []
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if evaluates:
        method = trainer.setup.regularizer_name or "plain fine-tuning"
        log = TrainingPoint.from_log_history(trainer.state.log_history)
        # It may have been evaluated after its last step already.
        known, names = trainer.measured.of(trainer.model), list(trainer.eval_dataset)
        results = {name: known[name] for name in names} if {*names} <= {*known} else evaluation_results(trainer)
        runs.append(kind(method, args.seed, results, log=log))
    return runs


def _report(trainer: Any, runs: list[Any], evaluation: dict[str, Any], options: argparse.Namespace) -> None:
    import importlib.util

    from starft_hf import RobustnessReport
    from starft_hf.report.mistakes import images_of_mistakes
    from starft_hf.training.about import about_run
    from starft_hf.training.checkpointing.files import saving_results

    folder = Path(trainer.args.output_dir)
    report: RobustnessReport | None = None
    parts: list[Any] = [] if runs else [_unevaluated(options)]
    if runs and isinstance(runs[0], _Results):
        from starft_hf.cli.tables import result_table

        parts = [result_table(one, f"{run.method} on {name}") for run in runs for name, one in run.results.items()]
    elif runs:
        shown = images_of_mistakes(runs, evaluation, trainer.args.image_column)
        about = about_run(trainer.args, options.model, trainer.train_dataset, trainer.class_names)
        report = RobustnessReport(runs, baseline=runs[0].method, thumbnails=shown, about=about)
        parts = [report]
    before, *_, after = [{name: part.as_dict() for name, part in run.results.items()} for run in runs] or [{}, {}]
    parts += _advice(trainer, runs)
    content = {"output_dir": str(folder), "method": runs[-1].method if runs else None}
    # Results are worth more than their files, which a full disk may refuse.
    show(options, {**content, "results": after, "before": before}, *parts)
    with saving_results(folder, folder):
        trainer.create_model_card()
        if report is not None and importlib.util.find_spec("jinja2") and importlib.util.find_spec("matplotlib"):
            report.save(folder, overwrite=True)
    print(f"Written to {folder}.")


def _advice(trainer: Any, runs: list[Any]) -> list[str]:
    """What may help where the worst group of a dataset is clearly worse than before training."""
    from starft_hf.evaluation.results import classification_results
    from starft_hf.utils.text import and_then

    if not runs:
        return []
    before, after = (classification_results(run.results) for run in (runs[0], runs[-1]))
    worse = [name for name in after if before[name].worst_group_accuracy - after[name].worst_group_accuracy > _NOTICED]
    if not worse:
        return []
    advice = f"The worst group of {and_then(worse)} is worse than before training. "
    if trainer.setup.regularizer_name is None:
        advice += "A regularizer may keep it: leave --regularizer at its default. "
    elif not trainer.setup.plan.plain_share and any("plain_drift" in entry for entry in trainer.state.log_history):
        advice += "In a long run, --plain_caption_share 0.25 keeps the model closer to what it was. "
    return [
        f"{advice}starft tune, with the same model and data, chooses the weight, and how much of the model before "
        "training to mix in, on validation data."
    ]
