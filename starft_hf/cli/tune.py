"""`starft tune`."""

# `option` makes a new field at every call.
# ruff: noqa: RUF009

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starft_hf.cli.arguments import TrainingParser, build, check_required, option, settings_of, training_parser
from starft_hf.cli.compare import METHODS
from starft_hf.cli.effects import no_effect_on_a_comparison, warn_of_no_effect
from starft_hf.cli.output import show


SUMMARY = "choose the weight of the regularizer and the WiSE-FT alpha on validation data, and save that model"
# Settings of a comparison that have no effect there, and have one here.
_USED = ("seed", "save_steps", "card_template")
_NONE = ("none", "None", "null")


@dataclass
class TuneArguments:
    """The arguments of `tune` alone, named as those of `starft_hf.tune`, but for the test split."""

    methods: list[str] | None = option(
        None, f"Methods to choose among: {METHODS}. By default plain fine-tuning and --regularizer."
    )
    weights: list[float] | None = option(
        None, "Weights to choose among; by default auto times powers of 3, from 1/27 to 27, that are from 1 to 3000."
    )
    alphas: list[float] | None = option(None, "WiSE-FT alphas to choose among; by default 0.1 to 1.")
    select_by: str | None = option(
        None, "worst_group, pseudo_groups, worst_class or average; by default the first if groups are known."
    )
    test_split: str | None = option(
        None, "Split to evaluate what was chosen on, by default test, if there is one; none: no split."
    )


def make_parser(prog: str) -> TrainingParser:
    return training_parser(prog, SUMMARY, TuneArguments, output_dir="starft-tuning")


def run(options: argparse.Namespace) -> int | None:
    from starft_hf.cli.data import run_arguments
    from starft_hf.training.checkpointing.interruption import INTERRUPTED, TrainingInterrupted, ended_by_sigterm
    from starft_hf.training.tuning import tune
    from starft_hf.training.tuning.candidates import candidates_of
    from starft_hf.training.tuning.store import check_folder

    check_required(options)
    own = asdict(build(TuneArguments, options))
    del own["test_split"]
    check_folder(Path(options.output_dir))
    args, arguments = settings_of(options), run_arguments(options)
    runs = [one.args for one in candidates_of(args, own["methods"], own["weights"], None)]
    idle = {"reg_weight", *no_effect_on_a_comparison()} - {*_USED, *([] if own["methods"] else ["regularizer"])}
    warn_of_no_effect(options, runs, idle)
    train, validation, test = _sets(options)
    # The data may say which columns have groups or captions.
    args = settings_of(options)
    try:
        with ended_by_sigterm():
            result = tune(
                arguments.pop("model"), args, train, validation, test_dataset=test or None, **arguments, **own
            )
    except TrainingInterrupted as interrupted:
        print("starft tune: interrupted; the same command continues", file=sys.stderr)
        return interrupted.code if isinstance(interrupted.code, int) else INTERRUPTED
    show(options, result.as_dict(), result, f"Written to {options.output_dir}.")
    return None


def _sets(options: argparse.Namespace) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The training set, the validation set and the test set, if there is one, by their names."""
    from starft_hf.cli.data import load_training_data
    from starft_hf.data.layouts.split_names import TEST, VALIDATION, split_of
    from starft_hf.data.loading import choose_split

    named = [options.eval_split] if isinstance(options.eval_split, str) else list(options.eval_split or ())
    if len(named) > 1:
        raise argparse.ArgumentTypeError(
            f"--eval_split {' '.join(named)}: the choice is by one split; pass that for testing as --test_split"
        )
    if any(split_of(name) == TEST for name in named):
        raise argparse.ArgumentTypeError(
            f"--eval_split {named[0]}: what is chosen by test data cannot be measured on them; name a validation "
            "split, or leave it out, and a part of the training data is held out"
        )
    data = load_training_data(options, lambda splits: next((n for n in splits if split_of(n) == VALIDATION), None))
    train, validation = data.train, data.evaluation
    if not validation:
        train, validation = _held_out(options, train)
    splits, test = data.found.splits, options.test_split
    if test is None:
        test = next((name for name in splits if split_of(name) == TEST and name not in validation), None)
    if test is None or test in _NONE:
        return train, validation, {}
    if test in validation:
        raise argparse.ArgumentTypeError(f"--test_split {test} is the split to choose by; test on another one")
    return train, validation, {test: choose_split(splits, test, options.eval_dataset or options.dataset)}


def _held_out(options: argparse.Namespace, train: Any) -> tuple[Any, dict[str, Any]]:
    """The training set without a part that is held out for validation, and that part."""
    from datasets import Dataset

    from starft_hf.data.holdout import held_out, image_paths
    from starft_hf.data.layouts.split_names import VALIDATION

    share = options.validation_split
    if not isinstance(train, Dataset) or not share:
        raise argparse.ArgumentTypeError(
            f"{options.dataset} has no validation split, and none can be held out of its training data; pass "
            "--eval_split or --eval_dataset"
        )
    groups = options.group_column or []
    wanted = [options.label_column or "label", *([groups] if isinstance(groups, str) else groups)]
    images = image_paths(train, options.image_column or "image") if options.caption_column else []
    stratify = [name for name in dict.fromkeys(wanted) if name in train.features]
    kept, chosen = held_out(train, share, stratify, images=images)
    print(
        f"There is no validation split: {len(chosen)} of the {len(train)} images of {options.train_split!r} are held "
        "out to choose by; --validation_split says how many.",
        file=sys.stderr,
    )
    return train.select(kept), {VALIDATION: train.select(chosen)}
