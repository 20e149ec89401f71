"""`starft discover`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starft_hf.cli.command import add_pool, add_trust, check_output, check_sources, given, positive_int, refuse
from starft_hf.cli.data import add_data_arguments, class_names, columns, load_split, reading
from starft_hf.cli.output import show


SUMMARY = "find what is correlated with the labels of a dataset, with the zero-shot model and without group labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the model before fine-tuning: a Hub id or a folder")
    add_data_arguments(parser, split="train")
    add_pool(parser, "--pool", "all", "; its attributes are tested (default: %(default)s)")
    parser.add_argument("--max_samples", type=positive_int, help="use at most this many images (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and the permutations")
    parser.add_argument("--top", type=positive_int, default=20, help="rows to print")
    parser.add_argument("--output", type=Path, help="new folder for the table, the images and a pool of what is found")
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    if options.json:
        refuse(options, ["top"], "--json prints all that was found")
    if options.output is not None:
        check_output(options.output)
    check_sources(options, "model", "dataset")
    settings = {
        **given(options, "max_samples", "seed"),
        **class_names(options),
        **columns(options),
        **reading(options),
        "trust_remote_code": options.trust_remote_code,
    }
    import torch

    from starft_hf import discover_spuriosity
    from starft_hf.cli.tables import associations_table
    from starft_hf.models.loading import load_model
    from starft_hf.spuriosity.pool import as_pool

    pool = as_pool(options.pool)
    rows, _ = load_split(options, "train")
    model = load_model(options.model, trust_remote_code=options.trust_remote_code)
    if torch.cuda.is_available():
        model.to("cuda")
    result = discover_spuriosity(model, None, rows, pool, **settings)
    parts: list[Any] = [associations_table(result, options.top)]
    found = [asdict(row) for row in result.table if row.found]
    show(options, {"images": len(result.labels), "attributes": len(result.attributes), "found": found}, *parts)
    if options.output is not None:
        result.save(options.output)
        written = "Table, images and pool" if result.found else "Table and images (without findings there is no pool)"
        print(f"{written}: {options.output}")
