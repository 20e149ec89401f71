"""`starft predict`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from starft_hf.cli.command import add_trust, check_sources, given, positive_int, read_class_names, refuse, warn
from starft_hf.cli.data import add_data_arguments, reading
from starft_hf.cli.launch import LaunchArguments, launch, launched, launched_by_user, launcher_flags, report_exit_code
from starft_hf.cli.output import show


SUMMARY = "classify images, labeled or not, and write a table of the predictions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hub id or a folder; its linear head is used if it has one")
    add_data_arguments(parser, split="all of them")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FILE", help="table to write: .csv, .parquet or .jsonl"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the table if it exists")
    parser.add_argument("--top_k", type=positive_int, default=5, help="classes of each image, at most")
    parser.add_argument("--classes_from", help="labeled dataset whose classes to use, for a model without classes")
    parser.add_argument("--templates", nargs="+", help="prompts with {} for the class (default: those of the model)")
    parser.add_argument("--no_head", action="store_true", help="classify by prompts, even if there is a linear head")
    parser.add_argument("--group_column", nargs="+", help="columns that name the groups (default: the usual ones)")
    parser.add_argument("--streaming", action="store_true", help="read shards and Hub datasets as they are needed")
    parser.add_argument("--base", help="base model of an adapter, if it is not the one that the adapter names")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--processes", type=positive_int, help="processes on this machine (default: 1)")
    add_trust(parser)


def run(options: argparse.Namespace) -> int | None:
    from starft_hf.hub.prediction.table import check_output
    from starft_hf.training.checkpointing.interruption import INTERRUPTED, TrainingInterrupted, ended_by_sigterm
    from starft_hf.utils.processes import end_with_launcher

    if options.classes_from is not None:
        refuse(options, ["class_names"], "--classes_from names the classes")
    if os.path.exists(os.path.expanduser(options.model)):
        refuse(options, ["revision"], f"it is of a model on the Hub, and {options.model} is a folder here")
    if launched_by_user():
        refuse(options, ["processes"], "the processes were started by accelerate or torchrun already")
    check_sources(options, "model", "dataset", "base", "classes_from")
    data = Path(options.dataset)
    if data.is_file() and options.output.exists() and data.samefile(options.output):
        raise argparse.ArgumentTypeError(f"--output {options.output} is the dataset itself; choose another file")
    check_output(options.output, options.overwrite)
    if not launched() and (flags := launcher_flags(LaunchArguments(processes=options.processes))):
        return launch(options.command_line, flags)
    end_with_launcher()
    try:
        with ended_by_sigterm():
            _run(options)
    except TrainingInterrupted:
        report_exit_code(INTERRUPTED)
        print("starft predict: stopped by SIGTERM. The same command resumes.", file=sys.stderr)
        return INTERRUPTED
    return None


def _run(options: argparse.Namespace) -> None:
    import torch
    from accelerate import PartialState

    from starft_hf import predict
    from starft_hf.data.captions import check_caption_templates
    from starft_hf.hub.classifier import load, local_folder
    from starft_hf.hub.prediction.predicting import default_device
    from starft_hf.hub.prediction.table import accuracy_of
    from starft_hf.hub.record import RECORD_FILE, RunRecord
    from starft_hf.utils.text import percent

    settings: dict[str, Any] = {**reading(options), **given(options, "output", "overwrite", "top_k", "templates")}
    if options.templates is not None:
        check_caption_templates("templates", options.templates)
    if launched():
        PartialState(cpu=not torch.cuda.is_available())
    names = _class_names(options)
    images = _images(options)
    folder = local_folder(options.model, **given(options, "revision", "trust_remote_code"))
    own = RunRecord.load(folder).config if (folder / RECORD_FILE).is_file() else {}
    settings |= _columns(options, images, own)
    classifier = load(folder, **given(options, "base", "trust_remote_code"))
    classifier.model.to(default_device())
    if classifier.head is None and options.no_head:
        warn(options, f"--no_head has no effect: {options.model} has no linear head")
    names = names or classifier.class_names or _classes_of_labels(options, images, settings)
    settings |= {"use_head": not options.no_head, "dtype": torch.bfloat16 if options.bf16 else None}
    table = predict(classifier, images, class_names=names, **settings)
    skipped = sum(found is None for found in table["prediction"][:])
    content = {"output": str(options.output), "rows": len(table), "skipped": skipped, "classes": list(names)}
    outcome = f"Classified {len(table) - skipped:,} images; written to {options.output}."
    if skipped:
        outcome += f" {skipped:,} could not be read, and have no prediction."
    if (accuracy := accuracy_of(table, names)) is not None:
        content["accuracy"] = accuracy
        outcome += f" Accuracy on labeled images: {percent(accuracy)}%."
    if os.environ.get("RANK", "0") == "0":
        show(options, content, outcome)


def _class_names(options: argparse.Namespace) -> Any:
    from starft_hf.data.all_images import class_names_of

    if options.classes_from is not None:
        return class_names_of(options.classes_from)
    return read_class_names(options.class_names)


def _images(options: argparse.Namespace) -> Any:
    """The images of the splits that were asked for."""
    from dataclasses import replace

    from starft_hf.data.all_images import read_all_images
    from starft_hf.data.loading import choose_split, left_out

    named = {name: getattr(options, name) or name.removesuffix("_column") for name in ("image_column", "label_column")}
    images = read_all_images(options.dataset, options.dataset_config, streaming=options.streaming, **named)
    for note in images.notes:
        warn(options, note)
    if images.left_out:
        warn(options, left_out(images.left_out, options.dataset))
    if options.split is None:
        return images
    return replace(images, splits={options.split: choose_split(images.splits, options.split, options.dataset)})


def _columns(options: argparse.Namespace, images: Any, own: dict[str, Any]) -> dict[str, Any]:
    """The columns that were passed, or else those of the model's own run where the images have them."""
    from starft_hf.data.source import column_names

    present = {name for part in images.splits.values() for name in column_names(part) or ()}
    columns: dict[str, Any] = {}
    for name in ("image_column", "label_column", "group_column"):
        wanted = own.get(name)
        if getattr(options, name) is not None:
            columns[name] = getattr(options, name)
        elif wanted and ({wanted} if isinstance(wanted, str) else set(wanted)) <= present:
            columns[name] = wanted
    if not columns.get("group_column") and images.group_columns:
        columns["group_column"] = list(images.group_columns)
    return columns


def _classes_of_labels(options: argparse.Namespace, images: Any, settings: dict[str, Any]) -> Any:
    """The classes that the labels of the images name, for a model that has none of its own."""
    from starft_hf.hub.prediction.source import Source

    named = Source(images, settings.get("image_column"), settings.get("label_column"), None).class_names()
    if named is None:
        raise argparse.ArgumentTypeError(
            f"{options.model} has no classes of its own, and {options.dataset} no labels; pass --class_names, or "
            "--classes_from with a labeled dataset"
        )
    warn(options, f"the classes are those of {options.dataset}: {', '.join(named[:8])}{', ...' * (len(named) > 8)}")
    return named
