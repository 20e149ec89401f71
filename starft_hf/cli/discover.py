"""`starft discover`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starft_hf.cli.command import check_output, given, positive_int
from starft_hf.cli.data import add_data_arguments, columns, load_split, reading
from starft_hf.cli.output import show


SUMMARY = "find what is correlated with the labels of a dataset, by the zero-shot model and without groups"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the model before fine-tuning: a Hub id or a folder")
    add_data_arguments(parser, split="train")
    parser.add_argument("--pool", default="all", help="attributes to test: a built-in name, a file or a repository")
    parser.add_argument("--max-samples", type=positive_int, help="use at most this many images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and the permutations")
    parser.add_argument("--top", type=positive_int, default=20, help="rows to print (default: 20)")
    parser.add_argument("--output", type=Path, help="new folder for the table, the images and a pool for train")


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
    settings = {**given(options, "class_names", "max_samples", "seed"), **columns(options), **reading(options)}
    result = discover_spuriosity(model, None, rows, pool, **settings)
    parts: list[Any] = [associations_table(result, options.top)]
    if options.output is not None:
        result.save(options.output)
        parts.append(f"Table, images and pool: {options.output}")
    found = [asdict(row) for row in result.table if row.found]
    show(options, {"images": len(result.labels), "attributes": len(result.attributes), "found": found}, *parts)
