"""`starft evaluate`."""

import argparse

from starft_hf.cli.command import given
from starft_hf.cli.data import add_data_arguments, columns, load_split, reading
from starft_hf.cli.output import show


SUMMARY = "classify a labeled dataset zero-shot or with a trained head, group by group"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hub id or a folder; its linear head is used if it has one")
    add_data_arguments(parser, nargs="?")
    parser.add_argument("--benchmark", help="one of the catalog, such as waterbirds, instead of a dataset")
    parser.add_argument("--group-column", nargs="+", help="columns that name the groups")
    parser.add_argument("--templates", nargs="+", help="prompts with {} for the class (default: a photo of a {}.)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--no-head", action="store_true", help="zero-shot, even if there is a linear head")


def run(options: argparse.Namespace) -> None:
    if (options.dataset is None) == (options.benchmark is None):
        raise argparse.ArgumentTypeError("pass either a dataset or --benchmark")
    import torch

    from starft_hf import evaluate_zero_shot
    from starft_hf.cli.tables import result_table
    from starft_hf.evaluation.catalog import load_benchmark
    from starft_hf.hub.classifier import load

    saved = load(options.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = saved.model.to(device)
    settings = {**given(options, "templates"), **reading(options), "dtype": torch.bfloat16 if options.bf16 else None}
    names = options.class_names
    if saved.head is not None and not options.no_head:
        settings["head"] = saved.head.to(device)
        names = names or saved.class_names
    if options.benchmark is not None:
        result = load_benchmark(options.benchmark).evaluate(model, saved.processor, **settings)
    else:
        settings.update(columns(options), class_names=names, group_column=options.group_column)
        result = evaluate_zero_shot(model, saved.processor, load_split(options), **settings)
    title = f"{options.model} on {options.benchmark or options.dataset}"
    show(options, result.as_dict(), result_table(result, title))
