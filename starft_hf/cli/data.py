"""The datasets that a command's options name, how to read them, and the arguments of a run."""

import argparse
from typing import Any

from starft_hf.cli.command import given, positive_int


def add_data_arguments(parser: argparse.ArgumentParser, *, split: str | None = None, **dataset: Any) -> None:
    """Add a labeled dataset, with further settings of its argument in `dataset`, and how to read it.

    `split` is the default split; None takes the one for evaluation.
    """
    parser.add_argument("dataset", help="a Hub id or a folder", **dataset)
    parser.add_argument("--config", dest="dataset_config", help="configuration of the dataset")
    parser.add_argument("--split", default=split, help=f"default: {split or 'test or validation, if there is one'}")
    parser.add_argument("--image-column", default="image")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--class-names", nargs="+", help="in label order")
    parser.add_argument("--batch-size", type=positive_int, default=64)
    parser.add_argument("--workers", dest="num_workers", type=int, default=0, help="processes that load images")
    parser.add_argument(
        "--on-bad-image", choices=("raise", "skip"), default="raise", help="unreadable images (default: raise)"
    )


def columns(options: argparse.Namespace) -> dict[str, Any]:
    """The names of the columns, as the package's functions take them."""
    return given(options, "image_column", "label_column")


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """How to read images, as the package's functions take it."""
    return {**given(options, "batch_size", "num_workers", "on_bad_image"), "progress": not options.json}


def load_split(options: argparse.Namespace) -> Any:
    """The rows that the options of `add_data_arguments` name."""
    from starft_hf.data.loading import choose_split, evaluation_split

    splits = _load(options, options.dataset)
    name = options.split or evaluation_split(splits) or next(iter(splits))
    return choose_split(splits, name, options.dataset)


def load_training_data(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The training set, and the evaluation set under its name if there is one."""
    from starft_hf.data.loading import choose_split, evaluation_split

    splits = _load(options, options.dataset, streaming=options.streaming)
    train = choose_split(splits, options.train_split, options.dataset)
    source, evaluated = options.eval_dataset or options.dataset, splits
    if options.eval_dataset is not None or options.streaming:
        # An iterable dataset has no length; evaluation needs one.
        evaluated = _load(options, source)
    name = options.eval_split or evaluation_split(evaluated)
    if name is None and options.eval_dataset is not None:
        name = next(iter(evaluated))
    return train, {} if name is None else {name: choose_split(evaluated, name, source)}


def _load(options: argparse.Namespace, source: str, *, streaming: bool = False) -> Any:
    from starft_hf.data.loading import load_splits

    config = options.dataset_config if source == options.dataset else None
    return load_splits(source, config, streaming=streaming, **columns(options))


def run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `StarFTTrainer`, and of `RunInputs`, other than the settings and the datasets."""
    return {"peft_config": options.peft, **given(options, "model", "spuriosity", "reference_model")}
