"""`starft discover`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from starft_hf.cli.command import Command, add_on_bad_image, positive_int


class DiscoverCommand(Command):
    """Finds what goes together with the labels of a data set."""

    name = "discover"
    summary = "find what goes together with the labels of a data set, by the zero-shot model and without groups"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("model", help="the model before fine-tuning: a Hub id or a folder")
        parser.add_argument("dataset", help="a Hub id or a folder")
        parser.add_argument("--pool", default="all", help="what to look for: a built-in name, a file or a repository")
        parser.add_argument("--config", dest="dataset_config", help="configuration of the data set")
        parser.add_argument("--split", default="train")
        parser.add_argument("--image-column", "--image_column", default="image")
        parser.add_argument("--label-column", "--label_column", default="label")
        parser.add_argument("--class-names", "--class_names", nargs="+", help="in the order of the labels")
        parser.add_argument("--max-samples", "--max_samples", type=positive_int, help="look at this many images only")
        parser.add_argument("--batch-size", "--batch_size", type=positive_int, default=64)
        parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: 0)")
        add_on_bad_image(parser)
        parser.add_argument("--seed", type=int, default=0, help="of the sample and the permutations")
        parser.add_argument("--top", type=positive_int, default=20, help="rows to print (default: 20)")
        parser.add_argument(
            "--output", type=Path, help="a new folder for the table, the pictures and the pool, which train takes"
        )
        return parser

    def run(self, options: argparse.Namespace) -> None:
        from starft_hf.utils.files import is_free

        if options.output is not None and not is_free(options.output):
            raise argparse.ArgumentTypeError(f"{options.output} holds something, and nothing is overwritten")
        import torch

        from starft_hf import SpuriosityPool, discover_spuriosity
        from starft_hf.cli.output import print_associations, print_json
        from starft_hf.data.loading import choose_split, load_splits
        from starft_hf.models.encoder import load_model

        pool = SpuriosityPool.load(options.pool)
        columns = {"image_column": options.image_column, "label_column": options.label_column}
        splits = load_splits(options.dataset, options.dataset_config, **columns)
        model = load_model(options.model)
        if torch.cuda.is_available():
            model.to("cuda")
        result = discover_spuriosity(
            model,
            None,
            choose_split(splits, options.split, options.dataset),
            pool,
            class_names=options.class_names,
            max_samples=options.max_samples,
            batch_size=options.batch_size,
            num_workers=options.workers,
            on_bad_image=options.on_bad_image,
            seed=options.seed,
            progress=not options.json,
            **columns,
        )
        if options.output is not None:
            result.save(options.output)
        if options.json:
            found = [asdict(row) for row in result.table if row.found]
            print_json({"images": len(result.labels), "attributes": len(result.attributes), "found": found})
            return
        print_associations(result, options.top)
        if options.output is not None:
            print(f"Table, pictures and pool: {options.output}")
