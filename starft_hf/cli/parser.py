"""The parser of every command: any spelling of a flag, settings from a YAML file, errors of one line."""

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from starft_hf.utils.files import expanded


# What other scripts call a setting. These names are accepted where a command has it, and not shown.
ALIASES = {
    "model": ("model_name_or_path", "pretrained_model_name_or_path", "model_name", "model_id"),
    "dataset": ("dataset_name", "dataset_path", "dataset_name_or_path", "dataset_id"),
    "dataset_config": ("dataset_config_name",),
    "train_split": ("dataset_train_split",),
    "eval_split": ("dataset_test_split", "eval_splits"),
    "processes": ("num_processes", "nproc_per_node"),
    "output_dir": ("output", "output_folder"),
    "learning_rate": ("lr",),
    "num_train_epochs": ("epochs", "num_epochs", "train_epochs"),
    "per_device_train_batch_size": ("batch_size", "train_batch_size"),
    "per_device_eval_batch_size": ("eval_batch_size",),
    "dataloader_num_workers": ("num_workers", "workers"),
    "batch_size": ("eval_batch_size", "per_device_eval_batch_size"),
    "workers": ("num_workers", "dataloader_num_workers"),
    "group_column": ("group_columns",),
    "train_sampling_strategy": ("sampling",),
    "shots": ("num_shots",),
    "class_names": ("classes", "class_names_file"),
    "lora_r": ("lora_rank", "rank"),
    "repo_id": ("hub_model_id",),
    "llm": ("llm_model",),
}


class CommandParser(argparse.ArgumentParser):
    """A parser whose flags are spelled with dashes or underscores, on the command line or in the file of `--config`.

    What it returns has the flags that were passed as `passed`: how each was spelled, by the name of its value.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Formatter, **settings})
        self.add_argument("--config", metavar="FILE", help="YAML file of these settings; flags take precedence")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        tokens, passed = self._respelled(sys.argv[1:] if args is None else args)
        if (file := _value_of("--config", tokens)) is not None:
            for name, value in self._settings_in(file).items():
                action = self._action_of(name) or self._unknown(f"--config {file}: unknown setting {name!r}.", name)
                if action.dest not in passed:
                    passed[action.dest] = f"{name} in {file}"
                    tokens += self._tokens_of(action, value)
        options, rest = super().parse_known_args(tokens, namespace)
        options.passed = passed
        return options, rest

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """The value of an argument; of a path, with `~` expanded, which no shell does in `--output_dir=~/runs`."""
        value = super()._get_value(action, arg_string)
        if isinstance(value, Path):
            return expanded(value)
        # Settings of `StarFTConfig` are strings.
        return os.path.expanduser(value) if action.dest.endswith("_dir") else value

    def error(self, message: str) -> NoReturn:
        """Print one line and end with the exit code of wrong use."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    @property
    def flags(self) -> dict[str, str]:
        """How a value is set on the command line, by its name: its flag, or the name of a positional argument."""
        return {action.dest: _flag_of(action) for action in reversed(self._actions)}

    def _respelled(self, args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The arguments with flags as they were added, and the flags among them."""
        tokens: list[str] = []
        passed: dict[str, str] = {}
        rest = iter(args)
        for text in rest:
            if text == "--":
                return [*tokens, text, *rest], passed
            flag, equals, value = text.partition("=")
            if not flag.startswith("--"):
                if flag in self._option_string_actions:
                    passed[self._option_string_actions[flag].dest] = flag
                tokens.append(text)
                continue
            action = self._action_of(flag) or self._unknown(f"unknown flag {flag}.", flag)
            if action.option_strings:
                passed[action.dest] = spelled = self._spellings()[_plain(flag)]
                tokens.append(spelled + equals + value)
            else:
                # A positional argument, typed as a flag.
                passed[action.dest] = flag
                value = value if equals else next(rest, "") or self.error(f"{flag} expects an argument")
                self._set_positional(action, value)
        return tokens, passed

    def _spellings(self) -> dict[str, str]:
        """Every name that is known, with underscores: the flag that it stands for, or a positional argument."""
        known = {_plain(flag): flag for flag in self._option_string_actions if flag.startswith("--")}
        known |= {action.dest: action.dest for action in self._actions if not action.option_strings}
        named = {alias: known[name] for name, aliases in ALIASES.items() if name in known for alias in aliases}
        return {**named, **known}

    def _action_of(self, name: str) -> argparse.Action | None:
        spelled = self._spellings().get(_plain(name))
        return next((part for part in self._actions if spelled in (*part.option_strings, part.dest)), None)

    def _unknown(self, what: str, name: str) -> NoReturn:
        known = self._spellings()
        close = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.5)
        nearest = close and (known[close[0]] if name.startswith("--") else repr(_plain(known[close[0]])))
        hint = f" Did you mean {nearest}?" if close else ""
        everything = "--help-all" if "help_all" in known else "--help"
        self.error(f"{what}{hint} `{self.prog} {everything}` lists all.")

    def _settings_in(self, file: str) -> dict[str, Any]:
        from starft_hf.utils.untrusted import read_yaml

        try:
            content = read_yaml(expanded(file))
        except (OSError, ValueError) as error:
            self.error(f"--config {file} cannot be read: {error}")
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            self.error(f"--config {file} has no settings; expected lines such as `{self._example()}: ...`")
        return content

    def _example(self) -> str:
        return next(action.dest for action in self._actions if action.dest not in ("help", "config"))

    def _tokens_of(self, action: argparse.Action, value: Any) -> list[str]:
        """What sets an argument on the command line to a value of a file, so that both are checked alike."""
        if not action.option_strings:
            self._set_positional(action, value)
            return []
        flag = _flag_of(action)
        if action.nargs == 0:
            if not isinstance(value, bool):
                self.error(f"{flag} is true or false in a file, not {value!r}")
            return [flag] if value else []
        if isinstance(value, list) and value and isinstance(action, argparse._AppendAction):
            return [f"{flag}={part}" for part in value]
        if isinstance(value, list) and value and action.nargs == "+":
            return [flag, *map(str, value)]
        if value is None or isinstance(value, (list, Mapping)):
            self.set_defaults(**{action.dest: value})
            return []
        return [f"{flag}={value}"]

    def _set_positional(self, action: argparse.Action, value: Any) -> None:
        action.nargs = "*" if action.nargs == "+" else "?"
        try:
            if isinstance(value, list):
                action.default = [self._get_value(action, str(part)) for part in value]
            else:
                action.default = self._get_value(action, str(value))
        except argparse.ArgumentError as error:
            self.error(f"{action.dest}: {error.message}")
        action.required = False


class Formatter(argparse.HelpFormatter):
    """Help with defaults as they would be typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        text = action.help or ""
        if not action.option_strings or action.nargs == 0 or "default" in text:
            return text
        if default in (None, argparse.SUPPRESS, ""):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{text} (default: {shown})".replace("%", "%%").strip() if shown else text


def _plain(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _value_of(flag: str, tokens: Sequence[str]) -> str | None:
    """The value of a flag, the last one if it is repeated; None if it was not passed."""
    found = [after for token, after in pairwise(tokens) if token == flag]
    found += [token.partition("=")[2] for token in tokens if token.startswith(f"{flag}=")]
    return found[-1] if found and found[-1] else None


def _flag_of(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else action.dest
