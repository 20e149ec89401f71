"""`starft compare`."""

import argparse
from dataclasses import asdict, dataclass, field
from pathlib import Path

from starft_hf.cli.arguments import TrainingParser, build, check_required, option, settings_of, training_parser
from starft_hf.cli.command import check_output, warn
from starft_hf.cli.effects import no_effect_on_a_comparison, warn_of_no_effect
from starft_hf.cli.output import show


SUMMARY = "fine-tune with several methods and seeds, and write one report"
METHODS = "zero-shot, CE, FLYP, kl, star, conditional, attribution, 'conditional + attribution', L2-SP, CAR-FT"


@dataclass
class CompareArguments:
    """The arguments of `compare` alone, named as those of `starft_hf.compare`."""

    methods: list[str] = field(
        default_factory=lambda: ["zero-shot", "CE", "FLYP", "kl", "star"],
        metadata={"help": f"Methods, also with a weight (kl@10): {METHODS}."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds; every method runs with each."})
    alpha: float | None = option(
        0.5, "Weight of the fine-tuned model in interpolated models; none (and with an adapter) makes none."
    )
    curve_alphas: list[float] = field(default_factory=list, metadata={"help": "Further weights, for the curves."})
    processes: int = option(1, "Runs at a time, on CPUs.")


def make_parser(prog: str) -> TrainingParser:
    return training_parser(prog, SUMMARY, CompareArguments, output_dir="starft-comparison")


def run(options: argparse.Namespace) -> None:
    from starft_hf.cli.data import load_training_data, run_arguments
    from starft_hf.objectives.regularizers import NO_REGULARIZER
    from starft_hf.report.page import check_extra
    from starft_hf.training.comparison import compare
    from starft_hf.training.methods import settings_of_methods

    check_required(options)
    own = build(CompareArguments, options)
    folder = Path(options.output_dir)
    check_output(folder, "--output_dir")
    check_extra()
    args, arguments = settings_of(options), run_arguments(options)
    if arguments["peft_config"] is not None and "alpha" not in options.passed:
        own.alpha = None
        warn(options, "adapters are not interpolated, so there are no WiSE-FT models")
    jobs = settings_of_methods(args, own.methods, own.seeds)
    regularized = [method for method, args in jobs if args.regularizer != NO_REGULARIZER]
    weighted = regularized and all("@" in method for method in regularized)
    also = [*no_effect_on_a_comparison(), *(["reg_weight"] if weighted else [])]
    warn_of_no_effect(options, [args for _, args in jobs], also)
    data = load_training_data(options)
    # The data may say which columns have groups or captions.
    args, train, evaluation = settings_of(options), data.train, data.evaluation
    if not evaluation:
        raise argparse.ArgumentTypeError("no split to evaluate on was found; pass --eval_split or --eval_dataset")
    report = compare(arguments.pop("model"), args, train, evaluation, **arguments, **asdict(own))
    page = report.save(folder)
    content = {"report": str(page), "runs": [run.as_dict() for run in report.runs]}
    show(options, content, report, f"Written to {page}.")
