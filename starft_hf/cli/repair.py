"""`starft repair`."""

import argparse
from pathlib import Path
from typing import Any

from starft_hf.cli.command import add_pool, add_trust, check_output, check_sources, given
from starft_hf.cli.data import add_data_arguments, class_names, columns, load_validation_split, reading
from starft_hf.cli.output import show


SUMMARY = "improve the worst group of a fine-tuned model in a minute, without training it again"
_METHODS = "none, logit adjustment, WiSE-FT, projection, PRISM-mini, last layer, DFR, AFR, 'AFR, zero-shot errors'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hub id or a folder of a fine-tuned model, maybe with a head or an adapter")
    add_data_arguments(parser, split="validation")
    parser.add_argument("--output_dir", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--base", help="model before fine-tuning (default: what the model's own run names)")
    parser.add_argument(
        "--select_by",
        choices=("worst_group", "pseudo_groups", "worst_class"),
        help="what a repair is chosen by (default: the first if groups are known, else the last)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        help=f"to try: {_METHODS}; without 'none' the best is taken in any case (default: all; without groups, those "
        "that fit no last layer)",
    )
    add_pool(parser, "--spuriosity", None, " (default: that of the run)")
    parser.add_argument(
        "--group_column", nargs="+", help="columns that name the groups (default: those of the model's own run)"
    )
    parser.add_argument(
        "--cluster_column",
        help="column that says which images belong together, such as those of one individual, camera or video",
    )
    parser.add_argument("--templates", nargs="+", help="prompts with {} for the class (default: those of the run)")
    parser.add_argument("--cache_dir", help="folder of embeddings (default: that of the reference's)")
    add_trust(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of folds and bootstrap samples")


def run(options: argparse.Namespace) -> None:
    from starft_hf.cli.evaluate import own_group_column, take_own_columns
    from starft_hf.hub.classifier import local_folder
    from starft_hf.hub.record import RECORD_FILE, RunRecord

    check_output(options.output_dir, "--output_dir")
    check_sources(options, "model", "dataset", "base")
    names = class_names(options)
    folder = local_folder(options.model, trust_remote_code=options.trust_remote_code)
    record = RunRecord.load(folder) if (folder / RECORD_FILE).is_file() else None
    own = {} if record is None else record.config
    take_own_columns(options, own)
    rows, split = load_validation_split(options, record)
    groups = own_group_column(options, own, rows)
    import torch

    from starft_hf import repair
    from starft_hf.cli.tables import repair_table
    from starft_hf.utils.text import one_decimal, percent

    settings: dict[str, Any] = {**names, **columns(options), **reading(options), "group_column": groups}
    asked = ("base", "methods", "select_by", "spuriosity", "templates", "cluster_column", "cache_dir")
    settings |= given(options, *asked, "trust_remote_code")
    settings |= {"seed": options.seed, "output_dir": options.output_dir}
    if torch.cuda.is_available():
        settings["device"] = "cuda"
    result = repair(options.model, None, rows, **settings)
    table = repair_table(result, f"{options.model} on {options.dataset}, split {split}, not fitted to these images")
    if result.method == "none":
        outcome = (
            "No repair gains more than its standard error "
            f"({one_decimal(result.standard_error)} points), so {options.output_dir} has the model as it is."
        )
    else:
        change = f"from {percent(result.before.worst_group)}% to {percent(result.after.worst_group)}%"
        gain = f"{one_decimal(result.gain)} ± {one_decimal(result.standard_error)} points"
        outcome = (
            f"{result.method}: worst group {change} on the images that chose it; expect {gain} on others. "
            f"Written to {options.output_dir}."
        )
    show(options, {**result.as_dict(), "dataset": options.dataset, "split": split}, table, outcome)
