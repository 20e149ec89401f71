"""`starft compare`."""

import argparse
from dataclasses import asdict, dataclass, field
from pathlib import Path

from starft_hf.cli.arguments import build, check_required, option, settings_of, training_parser
from starft_hf.cli.command import check_output
from starft_hf.cli.output import show


SUMMARY = "fine-tune with several methods and seeds, and write one report"
_METHODS = "zero-shot, CE, FLYP, kl, star, conditional, attribution, 'conditional + attribution', L2-SP, CAR-FT"


@dataclass
class CompareArguments:
    """The arguments of `compare` alone, named as those of `starft_hf.compare`."""

    methods: list[str] = field(
        default_factory=lambda: ["zero-shot", "CE", "FLYP", "kl", "star"], metadata={"help": f"Methods: {_METHODS}."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds; every method runs with each."})
    alpha: float = option(0.5, "Weight of the fine-tuned model in interpolated models.")
    curve_alphas: list[float] = field(default_factory=list, metadata={"help": "Further weights, for the curves."})
    processes: int = option(1, "Runs at a time, on CPUs.")


def make_parser(prog: str) -> argparse.ArgumentParser:
    return training_parser(prog, SUMMARY, CompareArguments, output_dir="starft-comparison")


def run(options: argparse.Namespace) -> None:
    from starft_hf.cli.data import load_training_data
    from starft_hf.report.page import check_extra
    from starft_hf.training.comparison import compare

    check_required(options)
    own = build(CompareArguments, options)
    folder = Path(options.output_dir)
    check_output(folder, "--output_dir")
    check_extra()
    args = settings_of(options)
    train, evaluation = load_training_data(options)
    if not evaluation:
        raise argparse.ArgumentTypeError("no split to evaluate on was found; pass --eval_split or --eval_dataset")
    report = compare(options.model, args, train, evaluation, spuriosity=options.spuriosity, **asdict(own))
    page = report.save(folder)
    content = {"report": str(page), "runs": [run.as_dict() for run in report.runs]}
    show(options, content, report, f"Written to {page}.")
