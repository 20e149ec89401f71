"""The datasets that a command's options name, how to read them, and the arguments of a run."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starft_hf.cli.benchmark import read_benchmark
from starft_hf.cli.command import count, given, positive_int, read_class_names, warn
from starft_hf.cli.messages import in_flags
from starft_hf.utils.files import expanded


_CAPTION = "caption"
CLASS_NAMES_HELP = "names in label order, or a file of them: one per line, or JSON"


def add_data_arguments(parser: argparse.ArgumentParser, *, split: str, **dataset: Any) -> None:
    """Add a labeled dataset, with further settings of its argument in `dataset`, and how to read it.

    `split` describes the default split.
    """
    parser.add_argument("dataset", help="a Hub id, a folder of images or shards, or a table of images", **dataset)
    parser.add_argument("--dataset_config", help="configuration of the dataset, if it has several")
    parser.add_argument("--split", help=f"split of the dataset (default: {split})")
    parser.add_argument("--image_column", help="column with the images (default: image)")
    parser.add_argument("--label_column", help="column with the labels (default: label)")
    parser.add_argument("--class_names", nargs="+", help=CLASS_NAMES_HELP)
    parser.add_argument("--batch_size", type=positive_int, default=64, help="images per forward")
    parser.add_argument("--workers", type=count, default=0, help="processes that load images")
    parser.add_argument("--on_bad_image", choices=("raise", "skip"), default="raise", help="for unreadable images")
    parser.add_argument(
        "--image_decoding", choices=("scaled", "full"), default="scaled", help="pixels that are decoded"
    )
    parser.add_argument("--image_cache", help="'auto' or a folder that keeps images decoded and resized")


def columns(options: argparse.Namespace) -> dict[str, str]:
    """The names of the columns, as the package's functions take them."""
    return {"image_column": options.image_column or "image", "label_column": options.label_column or "label"}


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """How to read images, as the package's functions take it, once a folder for them is known to be writable."""
    if options.image_cache is not None:
        from starft_hf.data.image_cache import checked_image_cache

        checked_image_cache(options.image_cache)
    return {
        **given(options, "batch_size", "on_bad_image", "image_decoding", "image_cache"),
        "num_workers": options.workers,
        "progress": not options.json,
    }


def class_names(options: argparse.Namespace) -> dict[str, Any]:
    """The names of the classes, as the package's functions take them."""
    return {} if options.class_names is None else {"class_names": read_class_names(options.class_names)}


def load_split(
    options: argparse.Namespace, preferred: str | None = None, record: Any = None, *, unseen: bool = False
) -> tuple[Any, str]:
    """The rows that the options of `add_data_arguments` name, and the name of their split.

    By default that is `preferred`, or else the split for evaluation. A dataset without splits is used as a whole; with
    `unseen`, only what the run of the model has held out of it, if `record`, the one of that run, is of this dataset.
    Which rows the model was trained on is said, unless there is a `preferred` split.
    """
    from starft_hf.data.layouts.split_names import VALIDATION
    from starft_hf.data.loading import choose_split, evaluation_split, left_out

    found, held_out = _read_as_trained(options, record)
    splits = found.splits
    if unseen and held_out is not None:
        _say_held_out(options, found, held_out, record)
        return held_out, VALIDATION
    name = options.split or preferred or evaluation_split(splits)
    shown = options.split
    if name is None or (name not in splits and options.split is None):
        name = _only_split(splits, options.dataset, "--split")
        shown = _shown(name, found, options.dataset)
        if name == shown and preferred is None:
            warn(options, f"{options.dataset} has no split for evaluation, only {name!r}, which is used")
    rows = choose_split(splits, name, options.dataset)
    if preferred is not None:
        summarize(options, found, name)
    elif found.left_out:
        warn(options, left_out(found.left_out, options.dataset))
    shown = shown or _shown(name, found, options.dataset)
    if held_out is not None:
        warn(options, f"{options.model} was trained on {record.data.get('rows')} of these {len(rows)} images")
    elif preferred is None:
        _warn_of_trained(options, rows, shown, record, unseen)
    return rows, shown


def load_validation_split(options: argparse.Namespace, record: Any = None) -> tuple[Any, str]:
    """The rows to choose by, and the name of their split: that of `--split`, or the one for validation.

    Of a dataset without splits that is what the run of the model has held out of it, if `record`, the one of that run,
    is of this dataset. Else what `starft train` would hold out of a training split is used, and a folder or a table of
    another name as a whole, with a warning.

    Raises:
        argparse.ArgumentTypeError: if there are splits, and none is for validation.
    """
    from starft_hf.data.holdout import VALIDATION_SPLIT
    from starft_hf.data.layouts.split_names import TRAIN, VALIDATION
    from starft_hf.data.loading import choose_split, left_out, split_for_validation

    found, held_out = _read_as_trained(options, record)
    if held_out is not None:
        _say_held_out(options, found, held_out, record)
        return held_out, VALIDATION
    name = options.split or split_for_validation(found.splits)
    shown = of_model = name or ""
    if name is None and len(found.splits) == 1:
        name = next(iter(found.splits))
        shown = of_model = _shown(name, found, options.dataset)
        if shown == TRAIN:
            found = read(options, options.dataset, share=VALIDATION_SPLIT)
            name = split_for_validation(found.splits)
            shown = name or ""
    if name is None:
        raise argparse.ArgumentTypeError(
            f"{options.dataset} has no split for validation, only {', '.join(found.splits)}; pass --split with one "
            "that the model was not trained on and that you do not report results on"
        )
    if found.left_out:
        warn(options, left_out(found.left_out, options.dataset))
    rows = choose_split(found.splits, name, options.dataset)
    _warn_of_trained(options, rows, of_model, record, True)
    return rows, shown


def _read_as_trained(options: argparse.Namespace, record: Any) -> tuple[Any, Any]:
    """What is found in the dataset, and the rows that the run of the model has held out of it, None if unknown."""
    from starft_hf.data.holdout import VALIDATION_SPLIT
    from starft_hf.data.layouts.split_names import TRAIN, VALIDATION
    from starft_hf.training.training_rows import is_trained_on

    if record is None or options.split is not None:
        return read(options, options.dataset), None
    share = record.data.get("held_out", VALIDATION_SPLIT)
    found = read(options, options.dataset, share=share, groups=record.config.get("group_column"))
    if not found.held_out:
        return found, None
    held_out = found.splits[VALIDATION] if is_trained_on(record, found.splits[TRAIN]) else None
    return read(options, options.dataset), held_out


def _say_held_out(options: argparse.Namespace, found: Any, held_out: Any, record: Any) -> None:
    from starft_hf.data.loading import left_out

    if found.left_out:
        warn(options, left_out(found.left_out, options.dataset))
    total = sum(map(len, found.splits.values()))
    also = "; its repair was chosen by them" if record.repair is not None else ""
    kept = f"the {len(held_out)} of its {total} images are used that {options.model} was not trained on"
    warn(options, f"{options.dataset} has no splits: {kept}{also}")


def _warn_of_trained(options: argparse.Namespace, rows: Any, split: str, record: Any, unseen: bool) -> None:
    """Warn of rows that the model was trained on; with `unseen`, of those it may have been trained on as well."""
    from starft_hf.data.layouts.split_names import TEST, VALIDATION, split_in
    from starft_hf.training.training_rows import is_trained_on

    instead = "put others into a folder validation/ beside train/, or name their split with --split"
    if record is not None and is_trained_on(record, rows):
        warn(options, f"{options.model} was trained on these images{f'; {instead}' if unseen else ''}")
    elif unseen and options.split is None and split_in(split) not in (TEST, VALIDATION):
        why = "has no starft.json" if record is None else "has a starft.json that does not fit these images"
        warn(options, f"{options.model} {why}, so it may have been trained on some of them; {instead}")


@dataclass(frozen=True)
class TrainingData:
    """The training set, the evaluation sets by name, if there are any, and how the dataset of these was found.

    `held_out` is the share of the data that was held out of the training set, 0 if they have splits.
    """

    train: Any
    evaluation: dict[str, Any]
    found: Any
    held_out: float = 0.0


def load_training_data(
    options: argparse.Namespace, default: Callable[[Mapping[str, Any]], str | None] | None = None
) -> TrainingData:
    """The datasets of a run, of which a summary is printed; by default groups are those usual for the data.

    `default` names the split to evaluate on unless some are passed; None takes the test or validation split.
    """
    from starft_hf.data.loading import choose_split, evaluation_split

    found = read(options, options.dataset, share=options.validation_split, streaming=options.streaming)
    take_usual_columns(options, found)
    if options.train_split not in found.splits and "train_split" not in options.passed and len(found.splits) == 1:
        options.train_split = next(iter(found.splits))
        warn(options, f"{options.dataset} has only the split {options.train_split!r}, which is trained on")
    train = choose_split(found.splits, options.train_split, options.dataset)
    summarize(options, found, options.train_split)
    source, evaluated = options.eval_dataset or options.dataset, found
    if options.eval_dataset is not None:
        evaluated = read(options, source)
    elif options.streaming:
        # An iterable dataset has no length; evaluation needs one.
        evaluated = read(options, source, share=options.validation_split)
    splits = evaluated.splits
    names = [options.eval_split] if isinstance(options.eval_split, str) else list(options.eval_split or ())
    if not names:
        name = (default or evaluation_split)(splits)
        if name is None and options.eval_dataset is not None:
            name = _only_split(splits, source, "--eval_split")
        names = [] if name is None or _shows_nothing(options, splits[name]) else [name]
    evaluation = {_shown(name, evaluated, source): choose_split(splits, name, source) for name in names}
    return TrainingData(train, evaluation, evaluated, found.held_out)


def read(
    options: argparse.Namespace, source: str, *, share: float = 0.0, streaming: bool = False, groups: Any = None
) -> Any:
    """What `read_data` finds in `source`, of which the share `share` is held out if there is one split only.

    `groups` are the columns to stratify by, by default those that were passed.
    """
    from starft_hf.data.layouts.table_columns import Wanted
    from starft_hf.data.loading import read_data

    if source == options.dataset and hasattr(options, "entry"):
        return read_benchmark(options)
    group = groups or getattr(options, "group_column", None) or ()
    image, label = columns(options).values()
    return read_data(
        source,
        options.dataset_config if source == options.dataset else None,
        Wanted(image, label, is_multi_label(options), getattr(options, "caption_column", None)),
        streaming=streaming,
        validation_split=share,
        group_columns=[group] if isinstance(group, str) else group,
    )


def take_usual_columns(options: argparse.Namespace, found: Any) -> None:
    """Take the groups that are usual for the data, and captions where there are no labels, unless others are given."""
    if options.group_column is None and found.group_columns:
        options.group_column = list(found.group_columns)
    features = [getattr(rows, "features", None) or {} for rows in found.splits.values()]
    has_labels = any((options.label_column or "label") in own for own in features)
    if options.caption_column is None and not has_labels and all(_CAPTION in own for own in features):
        options.caption_column = _CAPTION


def _shows_nothing(options: argparse.Namespace, rows: Any) -> bool:
    """Whether rows of a dataset with captions have neither labels nor captions to evaluate by."""
    wanted, features = {options.label_column or "label", options.caption_column}, getattr(rows, "features", None) or {}
    return options.caption_column is not None and bool(features) and wanted.isdisjoint(features)


def described(options: argparse.Namespace, inspection: Any) -> list[str]:
    """An inspection in lines of text, in the words of the command line."""
    flags = {name: f"--{name}" for name in ("validation_split", "train_split")}
    lines = [in_flags(line, flags) for line in inspection.lines()]
    return [f"{options.dataset}:", *(f"  {line}" for line in lines)]


def summarize(options: argparse.Namespace, found: Any, train_split: str) -> None:
    """Print what was found on standard error, on one of several processes."""
    from starft_hf.data.inspection import inspect_splits

    if os.environ.get("RANK", "0") == "0":
        inspection = inspect_splits(found, column_settings(options), train_split)
        print("\n".join(described(options, inspection)), file=sys.stderr, flush=True)


def is_multi_label(options: argparse.Namespace) -> bool:
    """Whether images may have several classes."""
    return getattr(options, "base_loss", None) == "multi_label" or getattr(options, "multi_label", False)


def column_settings(options: argparse.Namespace) -> Any:
    """The columns that were asked for, as the package's functions take them."""
    from starft_hf.data.columns import ColumnSettings

    present = [name for name in ("image_column", "label_column", "caption_column", "group_column") if name in options]
    return ColumnSettings(**given(options, *present), **class_names(options), multi_label=is_multi_label(options))


def _only_split(splits: Mapping[str, Any], source: str, flag: str) -> str:
    if len(splits) > 1:
        raise argparse.ArgumentTypeError(
            f"{source} has the splits {', '.join(splits)}, and none of them has the name of one for evaluation; "
            f"choose with {flag}"
        )
    return next(iter(splits))


def _shown(name: str, found: Any, source: str) -> str:
    """The name of a split in results: that of the folder if it has no splits."""
    folder = expanded(source)
    if name != "train" or len(found.splits) > 1 or not folder.is_dir():
        return name
    named = any("train" in part.name.lower() for part in (folder.resolve(), *folder.iterdir()))
    return name if named else folder.resolve().name


def run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `StarFTTrainer`, and of `RunInputs`, other than the settings and the datasets."""
    from starft_hf.cli.arguments import adapter_of

    return {"peft_config": adapter_of(options), **given(options, "model", "spuriosity", "reference_model")}
