"""`starft inspect`."""

import argparse
from typing import Any

from starft_hf.cli.benchmark import choose_benchmark
from starft_hf.cli.command import add_pool, check_sources
from starft_hf.cli.data import CLASS_NAMES_HELP, column_settings, described, read, take_usual_columns
from starft_hf.cli.output import show


SUMMARY = "show what a dataset contains: splits, classes, groups, skipped files, duplicates and captions"
_CLASSES_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from starft_hf.data.holdout import VALIDATION_SPLIT

    parser.add_argument("dataset", nargs="?", help="a Hub id, a folder of images or shards, or a table of images")
    parser.add_argument("--benchmark", help="one of the catalog, such as waterbirds, instead of a dataset")
    parser.add_argument("--data_dir", help="folder with the benchmark as it is distributed, instead of the Hub")
    parser.add_argument("--dataset_config", help="configuration of the dataset, if it has several")
    parser.add_argument("--train_split", default="train", help="split to train on")
    parser.add_argument(
        "--validation_split",
        type=float,
        default=VALIDATION_SPLIT,
        help="fraction to hold out for evaluation if there are no splits; 0: none",
    )
    parser.add_argument("--streaming", action="store_true", help="read shards as an iterable dataset")
    parser.add_argument("--image_column", help="column with the images (default: image)")
    parser.add_argument("--label_column", help="column with the labels (default: label)")
    parser.add_argument("--caption_column", help="column with captions")
    parser.add_argument("--group_column", nargs="+", help="columns that name the groups")
    parser.add_argument("--class_names", nargs="+", help=CLASS_NAMES_HELP)
    parser.add_argument("--multi_label", action="store_true", help="images may have several classes")
    parser.add_argument("--caption_template", nargs="+", default=["a photo of a {}."], help="templates of captions")
    add_pool(parser, "--spuriosity", "background")


def run(options: argparse.Namespace) -> None:
    choose_benchmark(options)
    if options.dataset is None:
        raise argparse.ArgumentTypeError("pass a dataset or --benchmark")
    check_sources(options, "dataset")
    from starft_hf.data.captions import check_caption_templates
    from starft_hf.data.inspection import inspect_splits

    if isinstance(options.caption_template, str):
        options.caption_template = [options.caption_template]
    check_caption_templates("caption_template", options.caption_template)
    found = read(options, options.dataset, share=options.validation_split, streaming=options.streaming)
    take_usual_columns(options, found)
    _check_groups(options, found.splits)
    inspection = inspect_splits(found, column_settings(options), options.train_split, compares=True)
    captions = _captions(options, found.splits, inspection)
    lines = [*described(options, inspection), "captions:", *(f"  {caption}" for caption in captions)]
    show(options, {**inspection.as_dict(), "captions": captions}, *lines)


def _check_groups(options: argparse.Namespace, splits: Any) -> None:
    """Refuse columns of groups that no split has, as training does."""
    wanted = [options.group_column] if isinstance(options.group_column, str) else options.group_column or ()
    known = {name: None for rows in splits.values() for name in getattr(rows, "features", None) or wanted}
    for name in wanted:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{options.dataset} has no column {name!r}; its columns are {list(known)}. Set --group_column to the "
                "right one"
            )


def _captions(options: argparse.Namespace, splits: Any, inspection: Any) -> list[str]:
    """Captions of the first classes or rows, with and without a spurious template."""
    from starft_hf.data.captions import captions_of, class_caption, inject
    from starft_hf.data.source import is_iterable
    from starft_hf.spuriosity.pool import as_pool

    columns = inspection.columns
    pool = None if options.spuriosity == "auto" else as_pool(options.spuriosity)
    spurious = pool.templates if pool is not None else ()
    if columns.caption is not None:
        name = options.train_split if options.train_split in splits else next(iter(splits))
        rows = splits[name].select_columns([columns.caption])
        rows = rows.take(_CLASSES_SHOWN) if is_iterable(rows) else rows.select(range(min(len(rows), _CLASSES_SHOWN)))
        plain = [captions_of(row[columns.caption], columns.caption)[0] for row in rows]
        return plain + [inject(spurious[0], caption, None) for caption in plain if spurious and "{}" in spurious[0]]
    names, template = (columns.class_names or ())[:_CLASSES_SHOWN], options.caption_template[0]
    plain = [class_caption(name, template) for name in names]
    return plain + [class_caption(name, template, spurious[0]) for name in names if spurious]
