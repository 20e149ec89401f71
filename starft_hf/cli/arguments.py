"""The arguments of commands that train: model and data, and the settings of `StarFTConfig`."""

# `option` makes a new field at every call.
# ruff: noqa: RUF009

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from starft_hf.cli.benchmark import choose_benchmark
from starft_hf.cli.command import PoolAction, check_sources, read_class_names
from starft_hf.cli.parser import CommandParser


# Settings of `TrainingArguments` that `--help` shows beside those of StarFT; `--help-all` shows the others.
_SHOWN = (
    *("output_dir", "max_steps", "gradient_accumulation_steps", "optim", "seed", "bf16", "use_cpu"),
    *("dataloader_num_workers", "logging_steps", "eval_strategy", "save_strategy", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "report_to", "push_to_hub", "hub_model_id"),
)
# These may not be changed.
_FIXED = ("remove_unused_columns", "logging_nan_inf_filter")
_NONE = ("none", "None", "null")
_MOST_CHOICES = 8


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of arguments, with its line of `--help`."""
    return field(default=default, metadata={"help": help})


@dataclass
class RunArguments:
    """The model and the data of a run. Its settings are those of `StarFTConfig`."""

    model: str | None = option(None, "Model: a Hub id or a folder.")
    dataset: str | None = option(None, "Dataset: a Hub id, a folder of images or shards, or a table of images.")
    benchmark: str | None = option(None, "Benchmark of the catalog, such as waterbirds, instead of a dataset.")
    data_dir: str | None = option(None, "Folder with the benchmark as it is distributed, instead of the Hub.")
    dataset_config: str | None = option(None, "Configuration of the dataset, if it has several.")
    train_split: str = option("train", "Split to train on.")
    validation_split: float = option(0.15, "Fraction to hold out for evaluation if there are no splits; 0: none.")
    eval_split: list[str] | None = option(None, "Split(s) to evaluate on; by default test or validation, if any.")
    eval_dataset: str | None = option(None, "Another dataset to evaluate on.")
    streaming: bool = option(False, "Load the training data as an iterable dataset.")
    # Of templates, `PoolAction` makes a list.
    spuriosity: str = field(
        default="background",
        metadata={
            "help": "Pool: a built-in name, a file, a repository on the Hub, or auto; or templates: '{} at night.'",
            "action": PoolAction,
            "nargs": "+",
        },
    )
    reference_model: str | None = option(None, "Reference model; by default, the model before fine-tuning.")
    peft: str | None = option(None, "Adapter: lora, lora-vision or lora-text.")
    lora_r: int | None = option(None, "Rank of the adapter, by default 16; makes --peft lora the default.")
    lora_alpha: int | None = option(None, "Scale of the adapter times its rank; by default its rank.")
    lora_dropout: float | None = option(None, "Dropout in the adapter; by default none.")
    no_random_crop: bool = option(False, "Preprocess training images with the processor alone: --crop_scale none.")
    preset: str | None = option(None, "Settings of a published command: paper. Flags take precedence.")


class TrainingParser(CommandParser):
    """A parser of dataclasses whose `--help` shows the settings in groups, those of Trainer with `--help-all`."""

    def format_help(self) -> str:
        groups = self._action_groups
        if not self._shows_all:
            self._action_groups = [group for group in groups if group.title != _TRAINER]
        try:
            return super().format_help()
        finally:
            self._action_groups = groups

    _shows_all = False

    def show_all(self) -> None:
        """Print the whole help and end the process."""
        self._shows_all = True
        self.print_help()
        self.exit()

    def group(self, title: str, belongs: Callable[[str], bool]) -> None:
        """Show the arguments whose names belong to a group under its title."""
        rest = self._optionals._group_actions
        group = self.add_argument_group(title)
        group._group_actions += [action for action in rest if belongs(action.dest)]
        rest[:] = [action for action in rest if not belongs(action.dest)]


_TRAINER = "settings of Trainer"


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        parser.show_all()


def training_parser(prog: str, summary: str, *own: type, output_dir: str = "starft-output") -> TrainingParser:
    """A parser of `RunArguments`, `StarFTConfig` and the dataclasses `own`."""
    from transformers import HfArgumentParser

    from starft_hf.training.configuration import StarFTConfig

    class Parser(TrainingParser, HfArgumentParser):
        pass

    # "resolve": `TrainingArguments` has a `debug` too, which is replaced.
    parser = Parser(
        [RunArguments, *own, StarFTConfig],
        prog=prog,
        usage=f"{prog} --model MODEL --dataset DATASET [settings]",
        description=summary,
        conflict_handler="resolve",
    )
    for action in parser._actions:
        _accept_none(action)
        if action.nargs == 0 and action.option_strings[0].startswith("--no_"):
            # Of a setting that takes `false` as well.
            action.help = argparse.SUPPRESS
        elif len(list(action.choices or ())) > _MOST_CHOICES:
            action.metavar = action.dest.upper()
        if action.dest != "help":
            # With dashes they are accepted as well, and not shown.
            for flag in action.option_strings[1:]:
                del parser._option_string_actions[flag]
            action.option_strings = action.option_strings[:1]
    parser.set_defaults(output_dir=output_dir, report_to="none")
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show the settings of Trainer as well")

    kinds = {"model and data": RunArguments, **{f"`{prog}` alone": kind for kind in own}}
    groups = {title: [part.name for part in fields(kind)] for title, kind in kinds.items()} | _groups_of(StarFTConfig)
    changed = {part.name for part in fields(StarFTConfig) if hasattr(part.metadata.get("help"), "scope")}
    groups["training"] = [name for name in (*changed, *_SHOWN) if name not in _FIXED]
    for title, names in groups.items():
        parser.group(title, names.__contains__)
    # Its `debug` is about to be replaced.
    inherited = {part.name for part in fields(StarFTConfig)} - {"debug"}
    parser.group(_TRAINER, inherited.__contains__)
    return parser


def _groups_of(kind: type) -> dict[str, list[str]]:
    """The settings under every heading of the configuration's docstring."""
    parts = re.split(r"^Args: Parameters that control (.+)$", inspect.getdoc(kind) or "", flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {title: re.findall(r"^ {4}(\w+) \(", text, flags=re.MULTILINE) for title, text in pairs}


def _accept_none(action: argparse.Action) -> None:
    """Let "none" stand for None, where that is a value and no name could be meant."""
    convert: Any = action.type
    if convert in (int, float) and (action.default is None or action.dest in ("crop_scale", "alpha")):

        def parse(text: str) -> Any:
            return None if text in _NONE else convert(text)

        parse.__name__ = convert.__name__
        action.type = parse


def build(kind: type, options: argparse.Namespace, **changes: Any) -> Any:
    """A dataclass made of the options that have its fields' names; its errors are errors of the command line."""
    names = {part.name for part in fields(kind) if part.init}
    values = {name: value for name, value in vars(options).items() if name in names}
    try:
        return kind(**{**values, **changes})
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except (TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"a setting has a value of the wrong type: {error}") from error


def settings_of(options: argparse.Namespace) -> Any:
    """The `StarFTConfig` of the options."""
    from starft_hf.training.configuration import StarFTConfig
    from starft_hf.training.presets import find_preset

    changes: dict[str, Any] = {"class_names": read_class_names(options.class_names)}
    if options.crop_scale == [None]:
        changes["crop_scale"] = None
    if options.no_random_crop:
        if "crop_scale" in options.passed and options.crop_scale not in (None, [None]):
            raise argparse.ArgumentTypeError("--crop_scale asks for random crops and --no_random_crop for none")
        changes["crop_scale"] = None
    args = build(StarFTConfig, options, **changes)
    if options.preset is None or "per_device_train_batch_size" in options.passed:
        return args
    return find_preset(options.preset).with_batch(args)


def take_preset(options: argparse.Namespace) -> None:
    """Take the settings of the preset that was chosen, if any, other than those that were passed."""
    from starft_hf.training.presets import find_preset

    if options.preset is not None:
        settings = find_preset(options.preset).settings
        vars(options).update({name: value for name, value in settings.items() if name not in options.passed})


def adapter_of(options: argparse.Namespace) -> Any:
    """The `peft_config` of the options: the name of a preset, or a preset with another rank."""
    changes = {name: getattr(options, f"lora_{name}") for name in ("r", "alpha", "dropout")}
    if all(value is None for value in changes.values()):
        return options.peft
    from peft import LoraConfig

    from starft_hf.models.adapters import PRESET_RANK, check_preset

    preset = options.peft or "lora"
    check_preset(preset)
    rank = PRESET_RANK if changes["r"] is None else changes["r"]
    scale = rank if changes["alpha"] is None else changes["alpha"]
    dropout = changes["dropout"] or 0.0
    for name, value in (("r", rank), ("alpha", scale)):
        if value < 1:
            raise argparse.ArgumentTypeError(f"--lora_{name} is {value}; it must be a positive integer")
    if not 0 <= dropout < 1:
        raise argparse.ArgumentTypeError(f"--lora_dropout is {dropout}; it must be at least 0 and below 1")
    return LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=preset)


def check_required(options: argparse.Namespace) -> None:
    """Check that model and dataset were passed, and exist if they are paths; take what preset and benchmark decide."""
    take_preset(options)
    choose_benchmark(options)
    for name in ("model", "dataset"):
        if getattr(options, name) is None:
            raise argparse.ArgumentTypeError(f"--{name} is missing; pass it, or put `{name}: ...` into --config")
    check_sources(options, "model", "dataset", "eval_dataset", "reference_model")
