"""The methods that runs are made with: their names, with a weight as in "kl@10", and the settings of each."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from transformers import SchedulerType

from starft_hf.objectives.regularizers import AUTO_WEIGHT, NO_REGULARIZER
from starft_hf.training.configuration import StarFTConfig
from starft_hf.utils.names import unknown_name


# Names, or by any label the settings of a method.
Methods: TypeAlias = Sequence[str] | Mapping[str, Mapping[str, Any]]

ZERO_SHOT = "zero-shot"

# The settings of each method, added to those of the run.
METHODS: dict[str, dict[str, Any]] = {
    "CE": {"base_loss": "cross_entropy", "regularizer": NO_REGULARIZER},
    "FLYP": {"regularizer": NO_REGULARIZER},
    "kl": {"regularizer": "kl"},
    "star": {"regularizer": "star"},
    "L2-SP": {"regularizer": "l2-sp", "reg_schedule": "constant"},
    "conditional": {"regularizer": "conditional"},
    "attribution": {"regularizer": NO_REGULARIZER, "reweight": "attribution"},
    "conditional + attribution": {"regularizer": "conditional", "reweight": "attribution"},
    "CAR-FT": {"regularizer": "car-ft", "reg_schedule": "constant"},
}

# Only the results of a run are kept.
_QUIET: dict[str, Any] = {
    **{"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False},
    **{"push_to_hub": False, "disable_tqdm": True},
}


def settings_of_methods(
    args: StarFTConfig,
    methods: Methods,
    seeds: Sequence[int],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[tuple[str, StarFTConfig]]:
    """Every run of a comparison: its label and its settings. The arguments are those of `compare`, as its errors."""
    if isinstance(methods, str):
        raise ValueError(f"methods is {methods!r}; pass a list of names, or a dictionary of settings by any name")
    _check_seeds(seeds)
    keys: list[Any]
    if isinstance(methods, Mapping):
        if settings is not None:
            raise ValueError("methods has the settings of each method already; leave settings out")
        asked, keys = [_from_settings(label, own) for label, own in methods.items()], list(methods)
    else:
        asked = _with_settings([_from_name(name) for name in methods], settings or {})
        # "kl@10" and "kl@10.0" are one.
        keys = [(one.name, one.weight) for one in asked]
    for name, given, different in (("methods", methods, keys), ("seeds", seeds, list(seeds))):
        if not different or len(set(different)) < len(different):
            raise ValueError(f"{name} is {list(given)}; pass at least one, without duplicates")
    known = [part.name for part in dataclasses.fields(args) if part.init]
    found = []
    for one in asked:
        one.check(known)
        for seed in seeds if one.label != ZERO_SHOT else seeds[:1]:
            own = {**_QUIET, **one.all_settings, "seed": seed}
            if own.get("lr_scheduler_type", args.lr_scheduler_type) == SchedulerType.REDUCE_ON_PLATEAU:
                raise ValueError(
                    f"{one.label!r} has lr_scheduler_type='reduce_lr_on_plateau', and runs that are compared are not "
                    "evaluated while they train; use another schedule"
                )
            try:
                found.append((one.label, dataclasses.replace(args, **own)))
            except ValueError as error:
                raise ValueError(f"settings of {one.label!r}: {error}") from error
    return found


def _check_seeds(seeds: Any) -> None:
    """Raise ValueError if `seeds` are not integers, of which there are several."""
    whole = isinstance(seeds, Iterable) and not isinstance(seeds, str)
    if not whole or any(isinstance(seed, bool) or not isinstance(seed, Integral) for seed in seeds):
        raise ValueError(f"seeds is {seeds!r}; pass integers, such as seeds=(0, 1, 2)")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A method as it was asked for: its label, its name in `METHODS` or None, its weight or None, and its settings."""

    label: str
    name: str | None
    weight: float | str | None
    settings: Mapping[str, Any]

    @property
    def all_settings(self) -> dict[str, Any]:
        """Its settings with those of its method."""
        weight = {} if self.weight is None else {"reg_weight": self.weight}
        # The zero-shot model is evaluated by a run that never trains.
        return {**METHODS.get(self.name or "", METHODS["FLYP"]), **weight, **self.settings}

    def check(self, known: Sequence[str]) -> None:
        """Check that the settings have names that are known, and that the label is true of them."""
        for setting in self.settings:
            if setting not in known:
                raise ValueError(f"settings of {self.label!r}: {unknown_name('setting', setting, known)}")
        if "seed" in self.settings:
            raise ValueError(
                f"settings of {self.label!r} has a seed, but every method runs with each of seeds; remove it"
            )
        if self.weight is None:
            return
        if "reg_weight" in self.settings:
            raise ValueError(f"{self.label!r} has a weight, and its settings have another; leave out one of them")
        if self.all_settings["regularizer"] == NO_REGULARIZER:
            raise ValueError(f"{self.label!r} has a weight, and {self.name!r} has no regularizer; write {self.name!r}")


def _from_name(label: str) -> _Asked:
    """A method by its name, maybe with a weight as in "kl@10"."""
    name, at, text = str(label).partition("@")
    if name != ZERO_SHOT and name not in METHODS:
        raise ValueError(unknown_name("method", name, [ZERO_SHOT, *METHODS]))
    if not at:
        return _Asked(name, name, None, {})
    if name == ZERO_SHOT:
        raise ValueError(f"{label!r} has a weight, and the zero-shot model has none; write {ZERO_SHOT!r}")
    try:
        weight = AUTO_WEIGHT if text == AUTO_WEIGHT else float(text)
    except ValueError:
        raise ValueError(
            f"{label!r} should end with the weight of its regularizer, as in '{name}@10'; {text!r} is not a number"
        ) from None
    return _Asked(str(label), name, weight, {})


def _from_settings(label: str, settings: Mapping[str, Any]) -> _Asked:
    """A method by its settings, of which "method" may be its name; otherwise the label, or the regularizer."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"methods has {settings!r} for {label!r}; pass a dictionary of settings, or a list of names")
    own = dict(settings)
    if (method := own.pop("method", None)) is not None:
        named = _from_name(method)
        if named.name == ZERO_SHOT:
            raise ValueError(f"{label!r} is the zero-shot model; call it {ZERO_SHOT!r}")
        return dataclasses.replace(named, label=label, settings=own)
    if label.partition("@")[0] in (ZERO_SHOT, *METHODS):
        return dataclasses.replace(_from_name(label), settings=own)
    if "regularizer" not in own:
        problem = unknown_name("method", label, [ZERO_SHOT, *METHODS])
        raise ValueError(f"{problem} A name of your own needs the setting 'method', one of these, or 'regularizer'.")
    return _Asked(label, None, None, own)


def _with_settings(asked: Sequence[_Asked], settings: Mapping[str, Mapping[str, Any]]) -> list[_Asked]:
    """The methods with settings by label; those by the name of a method are of all its weights."""
    labels, names = [one.label for one in asked], [one.name for one in asked]
    for label in settings:
        _from_name(label)
        if label not in (*labels, *names):
            raise ValueError(f"settings has {label!r}, which is not compared; add it to methods, or remove it")
    return [
        dataclasses.replace(one, settings={**settings.get(one.name or "", {}), **settings.get(one.label, {})})
        for one in asked
    ]
