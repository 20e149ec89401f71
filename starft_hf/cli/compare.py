"""`starft compare`."""

import argparse
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starft_hf.cli.arguments import TrainingParser, build, check_required, option, settings_of, training_parser
from starft_hf.cli.command import check_output, refuse
from starft_hf.cli.effects import no_effect_on_a_comparison, warn_of_no_effect
from starft_hf.cli.output import show


if TYPE_CHECKING:
    from starft_hf.cli.data import TrainingData

SUMMARY = "fine-tune with several methods and seeds, and write one report"
METHODS = "zero-shot, CE, FLYP, kl, star, conditional, attribution, 'conditional + attribution', L2-SP, CAR-FT"


@dataclass
class CompareArguments:
    """The arguments of `compare` alone, named as those of `starft_hf.compare`."""

    methods: list[str] = field(
        default_factory=lambda: ["zero-shot", "CE", "FLYP", "kl", "star"],
        metadata={"help": f"Methods, also with a weight (kl@10) or a repair ('kl + last layer'): {METHODS}."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds; every method runs with each."})
    alpha: float | None = option(0.5, "Weight of the fine-tuned model in interpolated models; none makes none.")
    curve_alphas: list[float] = field(default_factory=list, metadata={"help": "Further weights, for the curves."})
    repair_split: str | None = option(None, "Split that repairs are chosen on; by default validation, if it is free.")
    repair_cluster_column: str | None = option(None, "Column of that split that says which images belong together.")
    processes: int = option(1, "Runs at a time, on CPUs.")


def make_parser(prog: str) -> TrainingParser:
    return training_parser(prog, SUMMARY, CompareArguments, output_dir="starft-comparison")


def run(options: argparse.Namespace) -> None:
    from starft_hf.cli.data import load_training_data, run_arguments
    from starft_hf.objectives.regularizers import NO_REGULARIZER
    from starft_hf.report.page import check_extra
    from starft_hf.training.comparison import compare
    from starft_hf.training.methods import settings_of_methods
    from starft_hf.training.repairs import with_repairs

    check_required(options)
    own = build(CompareArguments, options)
    folder = Path(options.output_dir)
    check_output(folder, "--output_dir")
    check_extra()
    args, arguments = settings_of(options), run_arguments(options)
    methods, repairs = with_repairs(own.methods)
    if not repairs.by_method:
        refuse(
            options,
            ["repair_split", "repair_cluster_column"],
            "none of --methods ends with a repair, as 'FLYP + repair' does",
        )
    jobs = settings_of_methods(args, methods, own.seeds)
    regularized = [method for method, args in jobs if args.regularizer != NO_REGULARIZER]
    weighted = regularized and all("@" in method for method in regularized)
    also = [*no_effect_on_a_comparison(), *(["reg_weight"] if weighted else [])]
    warn_of_no_effect(options, [args for _, args in jobs], also)
    data = load_training_data(options)
    # The data may say which columns have groups or captions.
    args, train, evaluation = settings_of(options), data.train, data.evaluation
    if not evaluation:
        raise argparse.ArgumentTypeError("no split to evaluate on was found; pass --eval_split or --eval_dataset")
    given = {name: value for name, value in asdict(own).items() if name != "repair_split"}
    if repairs.by_method:
        given["repair_dataset"] = _repair_split(options, own.repair_split, data)
    report = compare(arguments.pop("model"), args, train, evaluation, **arguments, **given)
    content = {"report": str(folder / "report.html"), "runs": [run.as_dict() for run in report.runs]}
    # Before it is saved, so that a full disk does not take it away.
    show(options, content, report)
    print(f"Written to {report.save(folder)}.")


def _repair_split(options: argparse.Namespace, name: str | None, data: "TrainingData") -> Any:
    """The rows that repairs are chosen on."""
    from starft_hf.data.loading import choose_split, split_for_validation

    splits = data.found.splits
    name = name or split_for_validation(splits)
    if name is None or any(rows is splits.get(name) for rows in (data.train, *data.evaluation.values())):
        raise argparse.ArgumentTypeError(
            f"repairs are chosen on a split that is neither trained nor reported on, and {name or 'validation'!r} of "
            f"{options.dataset} is not one; pass --repair_split or --eval_split with another of {', '.join(splits)}"
        )
    return choose_split(splits, name, options.dataset)
