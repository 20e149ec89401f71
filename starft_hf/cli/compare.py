"""`starft compare`."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from starft_hf.cli.arguments import build, required, settings_of, training_parser
from starft_hf.cli.command import Command


@dataclass
class CompareArguments:
    """Of `compare` alone."""

    methods: list[str] = field(
        default_factory=lambda: ["zero-shot", "CE", "FLYP", "kl", "star"],
        metadata={
            "help": "Methods: zero-shot, CE, FLYP, kl, star, conditional, attribution, 'conditional + attribution', "
            "L2-SP, CAR-FT."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds; every method runs with each."})
    alpha: float = field(default=0.5, metadata={"help": "Share of the fine-tuned weights in interpolated models."})
    curve_alphas: list[float] = field(
        default_factory=list, metadata={"help": "Further shares, for the curves of the report."}
    )
    processes: int = field(default=1, metadata={"help": "Runs at a time, on CPUs."})


class CompareCommand(Command):
    """Fine-tunes with several methods and seeds and writes one report."""

    name = "compare"
    summary = "fine-tune with several methods and seeds, and write one report"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        defaults = {"output_dir": "starft-comparison", "report_to": "none"}
        return training_parser(prog, self.summary, [CompareArguments], defaults)

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf.cli.data import load_training_data
        from starft_hf.cli.output import print_json, print_report
        from starft_hf.report.page import check_extra
        from starft_hf.training.comparison import compare
        from starft_hf.utils.files import is_free

        required(options, "model", "dataset")
        own = build(CompareArguments, options)
        folder = Path(options.output_dir)
        if not is_free(folder):
            raise argparse.ArgumentTypeError(f"--output_dir {folder} is not an empty folder; choose another")
        check_extra()
        args = settings_of(options)
        train, evaluation = load_training_data(options)
        if not evaluation:
            raise argparse.ArgumentTypeError("there is nothing to evaluate on; pass --eval_split or --eval_dataset")
        report = compare(
            options.model,
            args,
            train,
            evaluation,
            methods=own.methods,
            seeds=own.seeds,
            alpha=own.alpha,
            curve_alphas=own.curve_alphas,
            spuriosity=options.spuriosity,
            processes=own.processes,
        )
        page = report.save(folder)
        if options.json:
            print_json({"report": str(page), "runs": [run.as_dict() for run in report.runs]})
        else:
            print_report(report)
            print(f"Written to {page}.")
