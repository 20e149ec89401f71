"""`starft discover`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starft_hf.cli.command import CommandParser, check_output, positive_int
from starft_hf.cli.data import add_data_arguments, columns, load_split, reading
from starft_hf.cli.output import show


SUMMARY = "find what is correlated with the labels of a dataset, by the zero-shot model and without groups"


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(prog=prog, description=SUMMARY)
    parser.add_argument("model", help="the model before fine-tuning: a Hub id or a folder")
    add_data_arguments(parser, split="train")
    parser.add_argument("--pool", default="all", help="attributes to test: a built-in name, a file or a repository")
    parser.add_argument("--max-samples", type=positive_int, help="use at most this many images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and the permutations")
    parser.add_argument("--top", type=positive_int, default=20, help="rows to print (default: 20)")
    parser.add_argument("--output", type=Path, help="new folder for the table, the images and a pool for train")
    return parser


def run(options: argparse.Namespace) -> None:
    if options.output is not None:
        check_output(options.output)
    import torch

    from starft_hf import SpuriosityPool, discover_spuriosity
    from starft_hf.cli.tables import associations_table
    from starft_hf.models.loading import load_model

    pool = SpuriosityPool.load(options.pool)
    rows = load_split(options)
    model = load_model(options.model)
    if torch.cuda.is_available():
        model.to("cuda")
    result = discover_spuriosity(
        model,
        None,
        rows,
        pool,
        class_names=options.class_names,
        max_samples=options.max_samples,
        seed=options.seed,
        **columns(options),
        **reading(options),
    )
    parts: list[Any] = [associations_table(result, options.top)]
    if options.output is not None:
        result.save(options.output)
        parts.append(f"Table, images and pool: {options.output}")
    found = [asdict(row) for row in result.table if row.found]
    show(options, {"images": len(result.labels), "attributes": len(result.attributes), "found": found}, *parts)
