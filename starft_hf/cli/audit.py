"""`starft audit`."""

import argparse
from pathlib import Path
from typing import Any

from starft_hf.cli.command import add_pool, add_trust, check_output, check_sources, given
from starft_hf.cli.data import add_data_arguments, class_names, columns, load_split, reading
from starft_hf.cli.output import show


SUMMARY = "what a fine-tuned model has forgotten, what it leans on, and shortcuts that nobody named"

BROKEN_BOUND = 3


def _bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hub id or a folder of a dual encoder, maybe with a head or an adapter")
    add_data_arguments(parser, split="test or validation, if there is one")
    parser.add_argument("--base", help="model before fine-tuning (default: what the model's own run names)")
    parser.add_argument(
        "--output",
        type=Path,
        help="new folder for the page, its JSON, pseudo-groups and a pool; MODEL/audit also adds it to the card",
    )
    parser.add_argument(
        "--fail_under",
        type=_bound,
        metavar="X",
        help="exit with 3 if the score, from 0 to 1, is below X; the score takes no group labels: it is the accuracy "
        "in the worst combination of class and of what the start sees of the pool in an image, less for classes that "
        "attract images by it",
    )
    parser.add_argument(
        "--retention", nargs="+", metavar="DATA", help="datasets of other tasks, classified zero-shot before and after"
    )
    add_pool(parser, "--spuriosity", None, " (default: that of the run, or background)")
    parser.add_argument(
        "--vocabulary",
        default="tokenizer",
        help="words to compare images with: a file with one per line, or 'none' (default: the tokenizer's; with "
        "the extra 'audit', its nouns and adjectives)",
    )
    parser.add_argument(
        "--group_column", nargs="+", help="columns that name the groups (default: those of the model's own run)"
    )
    parser.add_argument("--templates", nargs="+", help="prompts with {} for the class (default: those of the run)")
    parser.add_argument("--alpha", type=float, default=0.05, help="largest p-value of what counts as found")
    parser.add_argument(
        "--saliency_maps",
        type=int,
        default=6,
        metavar="N",
        help="the page shows the N most confident mistakes in the worst group, and which parts of the image speak for "
        "them, before and after; 0 for none, and no images on the page (default: 6)",
    )
    parser.add_argument("--cache_dir", help="folder of embeddings (default: that of the reference's)")
    add_trust(parser)
    parser.add_argument("--seed", type=int, default=0, help="of permutations")


def run(options: argparse.Namespace) -> int | None:
    from starft_hf.cli.evaluate import own_group_column, take_own_columns
    from starft_hf.hub.audits import AUDIT_FOLDER, take_audit
    from starft_hf.hub.classifier import local_folder
    from starft_hf.hub.record import RECORD_FILE, RunRecord

    if options.output is not None:
        check_output(options.output)
    check_sources(options, "model", "dataset", "base")
    names = class_names(options)
    folder = local_folder(options.model, trust_remote_code=options.trust_remote_code)
    record = RunRecord.load(folder) if (folder / RECORD_FILE).is_file() else None
    own = {} if record is None else record.config
    take_own_columns(options, own)
    rows, split = load_split(options, record=record, unseen=True)
    groups = own_group_column(options, own, rows, "pseudo-groups are used")
    retention = _retention(options)
    import torch

    from starft_hf import audit
    from starft_hf.cli.tables import audit_table

    settings: dict[str, Any] = {**names, **columns(options), **reading(options), "group_column": groups}
    settings |= given(options, "spuriosity", "templates", "cache_dir", "trust_remote_code")
    settings |= given(options, "alpha", "saliency_maps", "seed")
    settings["vocabulary"] = None if options.vocabulary == "none" else options.vocabulary
    if torch.cuda.is_available():
        settings["device"] = "cuda"
    result = audit(options.model, options.base, rows, retention=retention, **settings)
    content = {**result.as_dict(), "dataset": options.dataset, "split": split}
    parts: list[Any] = [audit_table(result, f"{options.model} on {options.dataset}, split {split}")]
    parts += [str(row) for row in result.correlates.found]
    parts.append(f"Score: {result.score:.3f}")
    broken = options.fail_under is not None and result.score < options.fail_under
    if options.fail_under is not None:
        content |= {"fail_under": options.fail_under, "passed": not broken}
        parts.append(f"The score is {'below' if broken else 'not below'} --fail_under {options.fail_under:g}.")
    show(options, content, *parts)
    if options.output is not None:
        print(f"Page, JSON, pseudo-groups and pool: {result.save(options.output).parent}")
        place = Path(options.model)
        if place.is_dir() and options.output.resolve() == (place / AUDIT_FOLDER).resolve():
            take_audit(place)
            print(f"The card and the record in {place} have it too.")
    return BROKEN_BOUND if broken else None


def _retention(options: argparse.Namespace) -> dict[str, Any] | None:
    """The evaluation splits of the datasets of `--retention`, by the names of these."""
    from starft_hf.data.loading import choose_split, evaluation_split, load_splits

    found = {}
    for source in options.retention or ():
        check_sources(argparse.Namespace(retention=source), "retention")
        splits = load_splits(source, validation_split=0)
        name = evaluation_split(splits)
        if name is None and len(splits) == 1:
            name = next(iter(splits))
        if name is None:
            raise argparse.ArgumentTypeError(
                f"--retention {source} has the splits {', '.join(splits)}, and none of them is for evaluation"
            )
        found[source] = choose_split(splits, name, source)
    return found or None
