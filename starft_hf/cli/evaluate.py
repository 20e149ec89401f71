"""`starft evaluate`."""

import argparse
from typing import Any

from starft_hf.cli.command import Command, add_on_bad_image, positive_int


class EvaluateCommand(Command):
    """Classifies a labelled data set, group by group."""

    name = "evaluate"
    summary = "classify a labelled data set zero-shot or with a trained head, group by group"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("model", help="a Hub id or a folder; its linear head is used where it has one")
        parser.add_argument("dataset", nargs="?", help="a Hub id or a folder")
        parser.add_argument("--benchmark", help="one of the catalogue, such as waterbirds, instead of a data set")
        parser.add_argument("--config", dest="dataset_config", help="configuration of the data set")
        parser.add_argument("--split", help="default: test or validation, where there is one")
        parser.add_argument("--group-column", "--group_column", nargs="+", help="columns that name the groups")
        parser.add_argument("--image-column", "--image_column", default="image")
        parser.add_argument("--label-column", "--label_column", default="label")
        parser.add_argument("--class-names", "--class_names", nargs="+", help="in the order of the labels")
        parser.add_argument(
            "--templates", nargs="+", help="prompts with {} for the class name (default: a photo of a {}.)"
        )
        parser.add_argument("--batch-size", "--batch_size", type=positive_int, default=64)
        parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: 0)")
        add_on_bad_image(parser)
        parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
        parser.add_argument("--no-head", action="store_true", help="zero-shot, even if there is a linear head")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        if (options.dataset is None) == (options.benchmark is None):
            raise argparse.ArgumentTypeError("pass either a data set or --benchmark")
        import torch

        from starft_hf.cli.output import print_json, print_result
        from starft_hf.hub.classifier import load

        saved = load(options.model)
        if torch.cuda.is_available():
            saved.model.to("cuda")
        settings: dict[str, Any] = {
            "batch_size": options.batch_size,
            "num_workers": options.workers,
            "on_bad_image": options.on_bad_image,
            "dtype": torch.bfloat16 if options.bf16 else None,
            "progress": not options.json,
        }
        if saved.head is not None and not options.no_head:
            settings["head"] = saved.head.to(next(saved.model.parameters()).device)
        if options.templates:
            settings["templates"] = options.templates
        if options.benchmark is not None:
            result = _benchmark(options, saved, settings)
        else:
            result = _data_set(options, saved, settings)
        if options.json:
            print_json(result.as_dict())
        else:
            print_result(result, f"{options.model} on {options.benchmark or options.dataset}")


def _benchmark(options: argparse.Namespace, saved: Any, settings: dict[str, Any]) -> Any:
    from starft_hf.evaluation.catalog import load_benchmark

    return load_benchmark(options.benchmark).evaluate(saved.model, saved.processor, **settings)


def _data_set(options: argparse.Namespace, saved: Any, settings: dict[str, Any]) -> Any:
    from starft_hf import evaluate_zero_shot
    from starft_hf.data.loading import choose_split, evaluation_split, load_splits

    columns = {"image_column": options.image_column, "label_column": options.label_column}
    splits = load_splits(options.dataset, options.dataset_config, **columns)
    name = options.split or evaluation_split(splits) or next(iter(splits))
    names = options.class_names
    if "head" in settings:
        names = names or saved.class_names
    return evaluate_zero_shot(
        saved.model,
        saved.processor,
        choose_split(splits, name, options.dataset),
        class_names=names,
        group_column=options.group_column,
        **columns,
        **settings,
    )
