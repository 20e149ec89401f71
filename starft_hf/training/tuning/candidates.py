"""What is chosen among: methods and their weights, and how many of them continue after a part of their steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from starft_hf.objectives.regularizers import AUTO_WEIGHT, NO_REGULARIZER, get_regularizer
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.methods import METHODS, ZERO_SHOT, settings_of_methods
from starft_hf.training.plain_captions import plain_share
from starft_hf.utils.names import unknown_name


# Weights that are tried: "auto" times powers of three, as far as they are from 1 to 3000.
_POWERS = range(-3, 4)
_SMALLEST, _LARGEST = 1.0, 3000.0

# After these shares of its steps a run pauses, and the worse half of the runs ends there, but for two.
_PAUSES = (0.25, 0.5)
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Candidate:
    """A run to choose among: its label such as "kl@30", its method, its weight if it has one, and its settings."""

    label: str
    method: str
    weight: float | None
    args: StarFTConfig


@dataclass(frozen=True)
class Stage:
    """A part of all runs: until which share of their steps they train, and how many of them continue."""

    until: float
    keep: int


def stages(count: int) -> list[Stage]:
    """The stages of so many candidates."""
    found, left = [], count
    for halvings, until in enumerate(_PAUSES, 1):
        keep = max(_FEWEST, math.ceil(count / 2**halvings))
        if keep < left:
            found.append(Stage(until, keep))
            left = keep
    return [*found, Stage(1.0, left)]


def step_at(until: float, max_steps: int) -> int:
    """The step at which a share of all steps is done."""
    return max(1, math.ceil(until * max_steps))


class PauseCallback(TrainerCallback):
    """Ends a run after a share of its steps with a checkpoint, from which it continues as if it had never paused."""

    def __init__(self, until: float):
        self.until = until

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= step_at(self.until, state.max_steps):
            control.should_save = control.should_training_stop = True


def candidates_of(
    args: StarFTConfig,
    methods: Sequence[str] | None,
    weights: Sequence[float] | None,
    num_classes: int | None,
) -> list[Candidate]:
    """The runs to choose among, as `tune` describes them.

    Raises:
        ValueError: if a method or a weight is unknown, or weights have nothing to weight.
    """
    for name, given in (("methods", methods), ("weights", weights)):
        if isinstance(given, (str, Real)):
            raise ValueError(f"{name} is {given!r}; pass a list, such as {name}=[{given!r}]")
    names = _default_methods(args, num_classes) if methods is None else list(methods)
    names = [name for name in names if name != ZERO_SHOT]
    if not names:
        raise ValueError("methods has nothing to train; pass at least one besides 'zero-shot'")
    labels: list[str] = []
    for name in names:
        if "@" not in name and name not in METHODS:
            raise ValueError(unknown_name("method", name, METHODS))
        if "@" in name or METHODS[name]["regularizer"] == NO_REGULARIZER:
            labels.append(name)
            continue
        tried = _weights(METHODS[name]["regularizer"], num_classes) if weights is None else weights
        labels += [f"{name}@{_checked(weight):.6g}" for weight in tried]
    if weights is not None and not list(weights):
        raise ValueError("weights is empty; pass positive numbers, or None for those around 'auto'")
    if weights is not None and set(labels) <= set(names):
        raise ValueError(
            f"weights={list(weights)} has no effect: none of {names} takes a weight from it; leave it out"
        )
    found: dict[str, Candidate] = {}
    for label, own in settings_of_methods(args, labels, [args.seed]):
        method, at, _ = label.partition("@")
        regularizer = get_regularizer(own.regularizer) if at else None
        weight = None if regularizer is None else regularizer.weight(own.reg_weight, num_classes)
        if methods is None and regularizer is not None:
            # With the name of what "auto" is, but otherwise as "auto" would be.
            named = num_classes if args.caption_column is None else None
            own = replace(own, plain_caption_share=plain_share(args, regularizer, named))
        # "kl@auto" and "kl@30" may be the same.
        label = method if weight is None else f"{method}@{weight:.6g}"
        found[label] = Candidate(label, method, weight, own)
    return list(found.values())


def _default_methods(args: StarFTConfig, num_classes: int | None) -> list[str]:
    """Plain fine-tuning, and the method of the settings."""
    plain = "CE" if args.base_loss == "cross_entropy" else "FLYP"
    regularizer = get_regularizer(args.regularizer, num_classes)
    if regularizer is None:
        return [plain]
    known = [name for name, own in METHODS.items() if own["regularizer"] == regularizer.name and "reweight" not in own]
    if not known:
        raise ValueError(
            f"regularizer={regularizer.name!r} is not one of the methods that tune knows; compare its weights by "
            "starft_hf.compare, whose methods may be settings of any kind"
        )
    return [plain, *known]


def _weights(regularizer: str, num_classes: int | None) -> list[float]:
    found = get_regularizer(regularizer)
    assert found is not None
    if found.auto_weight is None:
        raise ValueError(
            f"regularizer={regularizer!r} has no weight for reg_weight={AUTO_WEIGHT!r}, around which others would be "
            "tried; pass weights, such as weights=[0.01, 0.1, 1]"
        )
    center = found.auto_weight(num_classes)
    tried = (float(f"{center * 3.0**power:.3g}") for power in _POWERS)
    return [weight for weight in tried if _SMALLEST <= weight <= _LARGEST]


def _checked(weight: Any) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"weights has {weight!r}; pass positive numbers. Plain fine-tuning is the method 'FLYP'")
    return value
