"""The arguments of commands that train: model and data, the settings of `StarFTConfig`, and a YAML file of all."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of arguments, with its line of `--help`."""
    return field(default=default, metadata={"help": help})


@dataclass
class RunArguments:
    """The model and the data of a run. Its settings are those of `StarFTConfig`."""

    model: str | None = option(None, "Model: a Hub id or a folder.")
    dataset: str | None = option(None, "Dataset: a Hub id, or a folder of class folders, of *.parquet or of *.tar.")
    dataset_config: str | None = option(None, "Configuration of the dataset.")
    train_split: str = option("train", "Split to train on.")
    eval_split: str | None = option(None, "Split to evaluate on; by default test or validation, if there is one.")
    eval_dataset: str | None = option(None, "Another dataset to evaluate on.")
    streaming: bool = option(False, "Load the training data as an iterable dataset.")
    spuriosity: str = option("background", "Pool: a built-in name, a file, a repository on the Hub, or auto.")
    reference_model: str | None = option(None, "Reference model; by default, the model before fine-tuning.")
    peft: str | None = option(None, "Adapter: lora, lora-vision or lora-text.")
    no_random_crop: bool = option(False, "Preprocess training images with the processor alone, without random crops.")


def training_parser(prog: str, summary: str, *own: type, output_dir: str = "starft-output") -> argparse.ArgumentParser:
    """A parser of `RunArguments`, `StarFTConfig` and the dataclasses `own`, on the command line and in `--config`."""
    from transformers import HfArgumentParser

    from starft_hf.training.configuration import StarFTConfig

    class ConfigFileParser(HfArgumentParser):
        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
            first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
            first.add_argument("--config")
            file = first.parse_known_args(args)[0].config
            if file is not None:
                self.set_defaults(**_settings_in(file, self))
            return super().parse_known_args(args, namespace)

    # "resolve": `TrainingArguments` has a `debug` too, which is replaced.
    parser = ConfigFileParser(
        [RunArguments, *own, StarFTConfig],
        prog=prog,
        description=summary,
        conflict_handler="resolve",
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--config", help="YAML file of any of these settings; the command line wins")
    parser.set_defaults(output_dir=output_dir, report_to="none")
    return parser


def _settings_in(file: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    from starft_hf.utils.names import unknown_name
    from starft_hf.utils.untrusted import read_yaml

    try:
        content = read_yaml(Path(file))
    except (OSError, ValueError) as error:
        parser.error(f"--config {file} cannot be read: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        parser.error(f"--config {file} has no settings; expected lines such as `reg_weight: 1.0`")
    known = sorted(action.dest for action in parser._actions)
    for name in content:
        if name not in known:
            parser.error(f"--config {file}: {unknown_name('setting', name, known)}")
    return content


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

    return build(StarFTConfig, options, **({"crop_scale": None} if options.no_random_crop else {}))


def check_required(options: argparse.Namespace) -> None:
    """Check that model and dataset were passed, on the command line or in the file."""
    for name in ("model", "dataset"):
        if getattr(options, name) is None:
            raise argparse.ArgumentTypeError(f"--{name} is missing; pass it, or put `{name}: ...` into --config")
