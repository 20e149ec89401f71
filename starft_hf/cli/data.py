"""The datasets that a command's options name, how to read them, and the arguments of a run."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starft_hf.cli.command import count, given, positive_int, read_class_names, warn


CLASS_NAMES_HELP = "names in label order, or a file of them: one per line, or JSON"


def add_data_arguments(parser: argparse.ArgumentParser, *, split: str, **dataset: Any) -> None:
    """Add a labeled dataset, with further settings of its argument in `dataset`, and how to read it.

    `split` describes the default split.
    """
    parser.add_argument("dataset", help="a Hub id, or a folder of class folders, of *.parquet or of *.tar", **dataset)
    parser.add_argument("--dataset_config", help="configuration of the dataset, if it has several")
    parser.add_argument("--split", help=f"split of the dataset (default: {split})")
    parser.add_argument("--image_column", help="column with the images (default: image)")
    parser.add_argument("--label_column", help="column with the labels (default: label)")
    parser.add_argument("--class_names", nargs="+", help=CLASS_NAMES_HELP)
    parser.add_argument("--batch_size", type=positive_int, default=64, help="images per forward")
    parser.add_argument("--workers", type=count, default=0, help="processes that load images")
    parser.add_argument("--on_bad_image", choices=("raise", "skip"), default="raise", help="for unreadable images")


def columns(options: argparse.Namespace) -> dict[str, str]:
    """The names of the columns, as the package's functions take them."""
    return {"image_column": options.image_column or "image", "label_column": options.label_column or "label"}


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """How to read images, as the package's functions take it."""
    return {
        **given(options, "batch_size", "on_bad_image"),
        "num_workers": options.workers,
        "progress": not options.json,
    }


def class_names(options: argparse.Namespace) -> dict[str, Any]:
    """The names of the classes, as the package's functions take them."""
    return {} if options.class_names is None else {"class_names": read_class_names(options.class_names)}


def load_split(options: argparse.Namespace, preferred: str | None = None) -> tuple[Any, str]:
    """The rows that the options of `add_data_arguments` name, and the name of their split.

    By default that is `preferred`, or else the split for evaluation.
    """
    from starft_hf.data.loading import choose_split, evaluation_split

    splits = _load(options, options.dataset)
    name = options.split or preferred or evaluation_split(splits)
    if name is None:
        name = _only_split(splits, options.dataset, "--split")
        if name == _shown(name, splits, options.dataset):
            warn(options, f"{options.dataset} has no split for evaluation, only {name!r}, which is used")
    return choose_split(splits, name, options.dataset), _shown(name, splits, options.dataset)


def load_training_data(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The training set, and the evaluation sets by name, if there are any."""
    from starft_hf.data.loading import choose_split, evaluation_split

    splits = _load(options, options.dataset, streaming=options.streaming)
    train = choose_split(splits, options.train_split, options.dataset)
    source, evaluated = options.eval_dataset or options.dataset, splits
    if options.eval_dataset is not None or options.streaming:
        # An iterable dataset has no length; evaluation needs one.
        evaluated = _load(options, source)
    names = [options.eval_split] if isinstance(options.eval_split, str) else list(options.eval_split or ())
    if not names:
        name = evaluation_split(evaluated)
        if name is None and options.eval_dataset is not None:
            name = _only_split(evaluated, source, "--eval_split")
        names = [] if name is None else [name]
    return train, {_shown(name, evaluated, source): choose_split(evaluated, name, source) for name in names}


def _load(options: argparse.Namespace, source: str, *, streaming: bool = False) -> Any:
    from starft_hf.data.loading import load_splits

    config = options.dataset_config if source == options.dataset else None
    return load_splits(source, config, streaming=streaming, **columns(options))


def _only_split(splits: Mapping[str, Any], source: str, flag: str) -> str:
    if len(splits) > 1:
        raise argparse.ArgumentTypeError(
            f"{source} has the splits {', '.join(splits)}, and none of them has the name of one for evaluation; "
            f"choose with {flag}"
        )
    return next(iter(splits))


def _shown(name: str, splits: Mapping[str, Any], source: str) -> str:
    """The name of a split in results: that of the folder where `datasets` calls images without splits "train"."""
    folder = Path(source).expanduser()
    if name != "train" or len(splits) > 1 or not folder.is_dir():
        return name
    # `datasets` finds splits by words in the names of files and folders.
    named = any("train" in part.name for part in (folder.resolve(), *folder.iterdir()))
    return name if named else folder.resolve().name


def run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `StarFTTrainer`, and of `RunInputs`, other than the settings and the datasets."""
    from starft_hf.cli.arguments import adapter_of

    return {"peft_config": adapter_of(options), **given(options, "model", "spuriosity", "reference_model")}
