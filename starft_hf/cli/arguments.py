"""The arguments of commands that train: data and model, those of `StarFTConfig`, and a YAML file of all of them."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RunArguments:
    """What is trained on what. The settings are those of `StarFTConfig`."""

    model: str | None = field(default=None, metadata={"help": "Model: a Hub id or a folder."})
    dataset: str | None = field(
        default=None,
        metadata={"help": "Data: a Hub id, or a folder of images in one folder per class, of *.parquet or of *.tar."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; by default test or validation, where there is one."}
    )
    eval_dataset: str | None = field(default=None, metadata={"help": "Another data set to evaluate on."})
    streaming: bool = field(default=False, metadata={"help": "Read the training data as they are needed."})
    spuriosity: str = field(
        default="background", metadata={"help": "Pool: a built-in name, a file, a repository on the Hub, or auto."}
    )
    reference_model: str | None = field(default=None, metadata={"help": "Another reference than the model."})
    peft: str | None = field(default=None, metadata={"help": "Adapter: lora, lora-vision or lora-text."})
    no_random_crop: bool = field(default=False, metadata={"help": "Preprocess images as the processor does alone."})


def training_parser(
    prog: str, summary: str, own: Sequence[type] = (), defaults: dict[str, Any] | None = None
) -> argparse.ArgumentParser:
    """A parser of `RunArguments`, `StarFTConfig` and further dataclasses, on the command line and in `--config`.

    Args:
        prog: how the command is called.
        summary: what it does.
        own: dataclasses of the command.
        defaults: of settings, in place of those of the dataclasses.
    """
    from transformers import HfArgumentParser

    from starft_hf.training.configuration import StarFTConfig

    class ConfigFileParser(HfArgumentParser):
        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
            first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
            first.add_argument("--config")
            file = first.parse_known_args(args)[0].config
            if file is not None:
                self.set_defaults(**self._read(file))
            return super().parse_known_args(args, namespace)

        def _read(self, file: str) -> dict[str, Any]:
            import yaml

            from starft_hf.utils.files import read_text
            from starft_hf.utils.names import unknown_name

            try:
                content = yaml.safe_load(read_text(Path(file)))
            except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
                self.error(f"--config {file} cannot be read: {' '.join(str(error).split())}")
            if not isinstance(content, dict):
                self.error(f"--config {file} holds no settings; expected lines such as `reg_weight: 1.0`")
            known = {action.dest for action in self._actions}
            for name in content:
                if name not in known:
                    self.error(f"--config {file}: {unknown_name('setting', name, sorted(known))}")
            return content

    # The settings of transformers have a `debug` of their own, which gives way.
    parser = ConfigFileParser(
        [RunArguments, *own, StarFTConfig],
        prog=prog,
        description=summary,
        conflict_handler="resolve",
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--config", help="YAML file of any of these settings; what is on the command line wins")
    parser.set_defaults(**(defaults or {}))
    return parser


def build(kind: type, options: argparse.Namespace, **changes: Any) -> Any:
    """A dataclass out of the options that have its fields' names.

    Raises:
        argparse.ArgumentTypeError: if it refuses them.
    """
    names = {part.name for part in dataclasses.fields(kind) if part.init}
    values = {name: value for name, value in vars(options).items() if name in names}
    try:
        return kind(**{**values, **changes})
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except (TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"a setting has a value of the wrong kind: {error}") from error


def settings_of(options: argparse.Namespace, **changes: Any) -> Any:
    """The `StarFTConfig` of the options."""
    from starft_hf.training.configuration import StarFTConfig

    if options.no_random_crop:
        changes["crop_scale"] = None
    return build(StarFTConfig, options, **changes)


def required(options: argparse.Namespace, *names: str) -> None:
    """Check that settings are there, on the command line or in the file.

    Raises:
        argparse.ArgumentTypeError: naming the first that is not.
    """
    for name in names:
        if getattr(options, name) is None:
            raise argparse.ArgumentTypeError(f"--{name} is missing; pass it, or put `{name}: ...` into --config")
