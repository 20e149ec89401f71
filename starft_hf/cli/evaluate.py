"""`starft evaluate`."""

import argparse
from collections.abc import Sequence
from typing import Any

from starft_hf.cli.benchmark import OF_A_BENCHMARK
from starft_hf.cli.command import add_trust, check_sources, refuse, warn
from starft_hf.cli.data import add_data_arguments, class_names, columns, load_split, reading
from starft_hf.cli.output import show


SUMMARY = "classify a labeled dataset zero-shot or with a trained head, group by group; or retrieve by captions"

# Flags for images that are classified, other than those of how to read them.
_OF_CLASSES = ["label_column", "class_names", "group_column", "templates", "no_head"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hub id or a folder; its linear head is used if it has one")
    add_data_arguments(parser, split="test or validation, if there is one", nargs="?")
    parser.add_argument("--benchmark", help="one of the catalog, such as waterbirds, instead of a dataset")
    parser.add_argument("--data_dir", help="folder with the benchmark as it is distributed, instead of the Hub")
    parser.add_argument(
        "--group_column",
        nargs="+",
        help="columns that name the groups, such as `label place` (default: those of the model's own run)",
    )
    parser.add_argument(
        "--templates", nargs="+", help="prompts with {} for the class (default: those of the model's own run)"
    )
    parser.add_argument(
        "--task",
        choices=("auto", "retrieval", "classification"),
        default="auto",
        help="retrieval finds captions of images and images of captions; auto does for captions without labels",
    )
    parser.add_argument("--caption_column", help="column with the captions to retrieve (default: caption)")
    parser.add_argument(
        "--multi_label",
        action="store_true",
        help="images may have several classes (default: as in the model's own run)",
    )
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--no_head", action="store_true", help="zero-shot, even if there is a linear head")
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    if (options.dataset is None) == (options.benchmark is None):
        raise argparse.ArgumentTypeError("pass either a dataset or --benchmark")
    if options.benchmark is not None:
        unused = (*OF_A_BENCHMARK, "task", "caption_column", "multi_label")
        refuse(options, unused, f"--benchmark {options.benchmark} decides it")
    else:
        refuse(options, ["data_dir"], "it is the folder of a benchmark, and --benchmark does not name one")
    check_sources(options, "model", "dataset")
    given_names = class_names(options).get("class_names")
    read_as = reading(options)
    import torch

    from starft_hf import evaluate_zero_shot
    from starft_hf.cli.tables import result_table
    from starft_hf.data.captions import check_caption_templates
    from starft_hf.evaluation.catalog import load_benchmark
    from starft_hf.hub.classifier import load, local_folder
    from starft_hf.hub.record import RECORD_FILE, RunRecord

    if options.templates is not None:
        check_caption_templates("templates", options.templates)
    benchmark = None
    if options.benchmark is not None:
        benchmark = load_benchmark(options.benchmark, classes=given_names, root=options.data_dir)
    folder = local_folder(options.model, trust_remote_code=options.trust_remote_code)
    record = RunRecord.load(folder) if (folder / RECORD_FILE).is_file() else None
    own = {} if record is None else record.config
    if benchmark is None:
        options.multi_label = options.multi_label or own.get("base_loss") == "multi_label"
        take_own_columns(options, own)
        rows, split = load_split(options, record=record)
        if _is_retrieval(options, rows):
            refuse(options, _OF_CLASSES, "captions are retrieved, and no images are classified")
            return _retrieve(options, folder, rows, split)
        refuse(options, ["caption_column"], "the images are classified by their labels; pass --task retrieval as well")
        groups = own_group_column(options, own, rows)
    saved = load(folder, trust_remote_code=options.trust_remote_code)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = saved.model.to(device)
    settings = {**read_as, "dtype": torch.bfloat16 if options.bf16 else None}
    names = given_names
    if saved.head is None and options.no_head:
        warn(options, f"--no_head has no effect: {options.model} has no linear head")
    if saved.head is not None and not options.no_head:
        refuse(options, ["templates"], "the model has a linear head, which has no prompts; pass --no_head as well")
        settings["head"] = saved.head.to(device)
        names = names or saved.class_names
    elif benchmark is None or options.templates is not None:
        settings["templates"] = options.templates or saved.templates
    if benchmark is not None:
        if options.group_column is not None:
            # Shares of the training set are known for the benchmark's own groups.
            settings |= {"group_column": options.group_column, "training_shares": None}
        split = options.split or benchmark.evaluation_split
        rows = benchmark.load(split=split)
        result: Any = benchmark.evaluate(model, saved.processor, rows, **settings)
        data = {"benchmark": options.benchmark, "split": split}
    else:
        settings |= {**columns(options), "class_names": names, "group_column": groups}
        if names is not None and given_names is None and _has_integers(rows, options.label_column or "label"):
            warn(
                options,
                f"the labels are integers and are taken as positions in the classes of {options.model}: 0 is "
                f"{names[0]!r}; pass --class_names in the order of the labels if that is not so",
            )
        if "head" not in settings and names is None:
            _warn_of_fewer_classes(options, rows, saved.class_names or ())
        settings["multi_label"] = options.multi_label
        result = evaluate_zero_shot(model, saved.processor, rows, **settings)
        data = {"dataset": options.dataset, "split": split}
    title = f"{options.model} on {options.benchmark or options.dataset}, split {split}"
    show(options, {**result.as_dict(), **data}, result_table(result, title))


def _is_retrieval(options: argparse.Namespace, rows: Any) -> bool:
    """Whether captions are to be retrieved, once it is checked that there are some."""
    from starft_hf.data.columns import ColumnSettings
    from starft_hf.data.retrieval import CAPTION_COLUMN, RETRIEVAL, retrieval_columns
    from starft_hf.data.source import column_names

    named, present = columns(options), column_names(rows)
    caption = options.caption_column or CAPTION_COLUMN
    if options.task == RETRIEVAL and present is not None and caption not in present:
        raise argparse.ArgumentTypeError(
            f"--task retrieval needs captions, and {options.dataset} has no column {caption!r} but {present}; pass "
            "--caption_column"
        )
    settings = ColumnSettings(named["image_column"], named["label_column"], options.caption_column)
    return retrieval_columns(rows, settings, options.task, what=options.dataset) is not None


def _retrieve(options: argparse.Namespace, folder: Any, rows: Any, split: str) -> None:
    import torch

    from starft_hf import evaluate_retrieval
    from starft_hf.cli.tables import result_table
    from starft_hf.data.retrieval import CAPTION_COLUMN
    from starft_hf.hub.classifier import load

    saved = load(folder, trust_remote_code=options.trust_remote_code)
    result = evaluate_retrieval(
        saved.model.to("cuda" if torch.cuda.is_available() else "cpu"),
        saved.processor,
        rows,
        image_column=columns(options)["image_column"],
        caption_column=options.caption_column or CAPTION_COLUMN,
        dtype=torch.bfloat16 if options.bf16 else None,
        **reading(options),
    )
    content = {**result.as_dict(), "dataset": options.dataset, "split": split}
    show(options, content, result_table(result, f"{options.model} on {options.dataset}, split {split}"))


def _warn_of_fewer_classes(options: argparse.Namespace, rows: Any, trained: Sequence[str]) -> None:
    """Warn that images are classified among the classes of the data, where the model was fine-tuned on more."""
    from starft_hf.data.labels import class_feature

    own = class_feature((getattr(rows, "features", None) or {}).get(options.label_column or "label"))
    if own is not None and set(own) < set(trained):
        warn(
            options,
            f"the images are classified among the {len(own)} classes of {options.dataset}, and {options.model} was "
            f"fine-tuned on {len(trained)}; to classify among all of them, pass --class_names with a file that has "
            "one name per line",
        )


def _has_integers(rows: Any, column: str) -> bool:
    feature = (getattr(rows, "features", None) or {}).get(column)
    return not hasattr(feature, "names") and "int" in str(getattr(feature, "dtype", ""))


def take_own_columns(options: argparse.Namespace, own: dict[str, Any]) -> None:
    """Read the columns that the model's own run had, unless others were passed."""
    for name in ("image_column", "label_column"):
        if getattr(options, name) is None:
            setattr(options, name, own.get(name))


def own_group_column(
    options: argparse.Namespace, own: dict[str, Any], rows: Any, instead: str = "the classes are used"
) -> Any:
    """The columns that name the groups: those that were passed, or else those of the model's own run if they exist.

    `instead` says what a warning says that is used without them.
    """
    from starft_hf.data.source import column_names
    from starft_hf.utils.names import unknown_name

    present = column_names(rows) or []
    wanted = options.group_column or own.get("group_column")
    wanted = [wanted] if isinstance(wanted, str) else wanted
    missing = next((name for name in wanted or () if name not in present), None)
    if missing is None:
        return wanted
    if options.group_column is not None:
        problem = unknown_name("--group_column", missing, present)
        raise argparse.ArgumentTypeError(f"{options.dataset} has an {problem}")
    warn(options, f"{options.dataset} has no column {missing!r}, by which its own run had groups; {instead}")
    return None
