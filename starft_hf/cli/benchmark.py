"""A benchmark of the catalog as the data of a command that trains."""

import argparse
from typing import Any

from starft_hf.cli.command import read_class_names, refuse


# What a benchmark decides.
OF_A_BENCHMARK = ("dataset_config", "image_column", "label_column")
_OF_TRAINING = ("caption_column", "validation_split", "streaming")


def choose_benchmark(options: argparse.Namespace) -> None:
    """Let the benchmark of the options be their dataset, with its prompts where no others were passed.

    Raises:
        argparse.ArgumentTypeError: for flags that it leaves nothing to decide.
        ValueError: if there is no such benchmark, or none to train on.
    """
    if options.benchmark is None:
        refuse(options, ["data_dir"], "it is the folder of a benchmark, and --benchmark does not name one")
        return
    if options.dataset is not None:
        raise argparse.ArgumentTypeError("pass either --dataset or --benchmark")
    refuse(options, (*OF_A_BENCHMARK, *_OF_TRAINING), f"--benchmark {options.benchmark} decides it")
    from starft_hf.data.layouts.split_names import TRAIN
    from starft_hf.evaluation.catalog import load_benchmark

    names = read_class_names(options.class_names)
    entry = load_benchmark(options.benchmark, classes=names, root=options.data_dir)
    if entry.root is None and TRAIN not in entry.splits:
        raise argparse.ArgumentTypeError(_untrained(options))
    prompts = entry.prompts()
    if "caption_template" not in options.passed and options.caption_template not in prompts:
        options.caption_template = prompts[0]
    if "eval_templates" not in options.passed and getattr(options, "eval_templates", None) is None:
        options.eval_templates = list(prompts)
    # Its rows have the names of the classes.
    options.entry, options.dataset, options.class_names = entry, options.benchmark, None


def read_benchmark(options: argparse.Namespace) -> Any:
    """The splits of the benchmark that `choose_benchmark` chose, as `read_data` gives those of other data."""
    from datasets import DatasetDict

    from starft_hf.data.files import DataFound
    from starft_hf.data.layouts.split_names import TRAIN

    entry = options.entry
    if TRAIN not in entry.splits:
        raise argparse.ArgumentTypeError(_untrained(options))
    source = str(entry.root) if entry.root is not None else entry.hub[0].hub_id
    return DataFound(
        DatasetDict({name: entry.load(split=name) for name in entry.splits}),
        dict.fromkeys(entry.splits, (source,)),
        group_columns=entry.group_columns,
        notes=tuple(f"Runs count the group {name!r}, which the measure skips." for name in entry.ignored_groups),
    )


def _untrained(options: argparse.Namespace) -> str:
    where = (
        f"in {options.data_dir}" if options.data_dir else "on the Hub; pass its folder with --data_dir if it has one"
    )
    return f"--benchmark {options.benchmark} has no training split {where}"
