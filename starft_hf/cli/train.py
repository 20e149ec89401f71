"""`starft train`."""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starft_hf.cli.arguments import build, required, settings_of, training_parser
from starft_hf.cli.command import Command


@dataclass
class TrainArguments:
    """Of `train` alone."""

    processes: int | None = field(
        default=None,
        metadata={
            "help": "Processes to start with `accelerate launch`, on all machines together; by default 1, or the number "
            "in the configuration."
        },
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration for `accelerate launch`: ddp, fsdp2, two_machines or a file. Its number of processes "
            "and its precision apply."
        },
    )
    machine_rank: int | None = field(default=None, metadata={"help": "Number of this machine, from 0."})
    main_process_ip: str | None = field(default=None, metadata={"help": "Address of machine 0."})
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the last good checkpoint in output_dir, or start where there is none."},
    )


class TrainCommand(Command):
    """Fine-tunes, evaluates before and after, and saves model and report."""

    name = "train"
    summary = "fine-tune a model with StarFT and report how robust it came out"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        defaults = {"output_dir": "starft-output", "report_to": "none"}
        return training_parser(prog, self.summary, [TrainArguments], defaults)

    def run(self, options: argparse.Namespace) -> int | None:
        from starft_hf.cli.launch import launch, launched, launcher_flags, tell_launcher
        from starft_hf.training.checkpointing.interruption import INTERRUPTED, TrainingInterrupted, ended_by_sigterm

        required(options, "model", "dataset")
        own = build(TrainArguments, options)
        if own.resume:
            options.resume_from_checkpoint = options.resume_from_checkpoint or "last"
        if not launched():
            flags = launcher_flags(own.accelerate_config, own.processes, own.machine_rank, own.main_process_ip)
            _check_output(Path(options.output_dir), resumed=bool(options.resume_from_checkpoint))
            if flags:
                # Wrong settings are reported once, before anything starts.
                settings_of(options)
                return launch(options.command_line, flags)
        try:
            with ended_by_sigterm():
                _run(options)
        except TrainingInterrupted as interrupted:
            tell_launcher(INTERRUPTED)
            if interrupted.checkpoint is None:
                print(f"starft train: {interrupted}", file=sys.stderr)
            return INTERRUPTED
        return None


def _check_output(folder: Path, *, resumed: bool) -> None:
    from starft_hf.utils.files import is_free

    if not resumed and not is_free(folder):
        raise argparse.ArgumentTypeError(
            f"--output_dir {folder} is not an empty folder; choose another, or go on with --resume"
        )


def _run(options: argparse.Namespace) -> None:
    # By itself, because nothing may refer to the trainer any more when its process takes leave of the others.
    from starft_hf.cli.data import load_training_data, make_trainer

    args = settings_of(options)
    train, evaluation = load_training_data(options)
    trainer = make_trainer(options, args, train, evaluation)
    runs = _train(trainer, options)
    if trainer.args.should_save:
        _report(trainer, runs, options)


def _train(trainer: Any, options: argparse.Namespace) -> list[Any]:
    from starft_hf.report import Run, TrainingPoint
    from starft_hf.training.comparison import ZERO_SHOT, evaluation_results

    args, resume = trainer.args, options.resume_from_checkpoint
    resume = True if resume in ("last", "true", "True") else resume
    # Before anything is evaluated.
    trainer.checkpoint_to_resume(resume)
    runs = []
    if trainer.eval_dataset is not None:
        runs.append(Run(ZERO_SHOT, args.seed, evaluation_results(trainer)))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.eval_dataset is not None:
        method = "plain fine-tuning" if args.regularizer == "none" else args.regularizer
        log = TrainingPoint.from_log_history(trainer.state.log_history)
        runs.append(Run(method, args.seed, evaluation_results(trainer), log=log))
    return runs


def _report(trainer: Any, runs: list[Any], options: argparse.Namespace) -> None:
    import importlib.util

    from starft_hf import RobustnessReport
    from starft_hf.cli.output import print_json, print_report

    folder = Path(trainer.args.output_dir)
    trainer.create_model_card()
    report = RobustnessReport(runs) if runs else None
    if report is not None and importlib.util.find_spec("jinja2") and importlib.util.find_spec("matplotlib"):
        report.save(folder, overwrite=True)
    if options.json:
        results = {run.method: {name: part.as_dict() for name, part in run.results.items()} for run in runs}
        print_json({"output_dir": str(folder), "results": results})
    elif report is not None:
        print_report(report)
    print(f"Written to {folder}.", file=sys.stderr)
