"""What was measured of a run, and of which weights: a comparison is with those that training started from."""

import hashlib
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from starft_hf.evaluation.results import AnyResult, Retention, result_from_dict


# Entries of every tensor that are compared. An optimizer step changes all of them.
_SAMPLED = 64


class Measurements:
    """The evaluation results of a run, by name of the dataset.

    Attributes:
        latest: of the latest evaluation of each dataset, whatever the weights were.
        before: of the weights that training started from.
        retention_before: of those weights, on the retention sets.
        at_start: whether the model still has those weights.
    """

    def __init__(self) -> None:
        self.latest: dict[str, AnyResult] = {}
        self.before: dict[str, AnyResult] = {}
        self.retention_before: dict[str, AnyResult] = {}
        self.at_start = True
        self._weights: dict[str, str] = {}
        # Which data the results are of: one name may stand for several datasets.
        self._data: dict[str, str] = {}
        self._data_before: dict[str, str] = {}
        # With a key for the weights after training.
        self._retention: tuple[str, dict[str, Retention]] = ("", {})

    def record(self, name: str, result: AnyResult, model: nn.Module, data: str) -> None:
        """Record an evaluation of `model`, as it is now, on the dataset whose `data_key` is given."""
        self.latest[name], self._data[name], self._weights[name] = result, data, weights_key(model)
        if self.at_start:
            self.before[name], self._data_before[name] = result, data

    def begin(self, model: nn.Module) -> None:
        """Training begins, with the weights of `model`."""
        if self.at_start:
            # Others may have been loaded since they were evaluated.
            _replace(self.before, self.of(model))

    def of(self, model: nn.Module) -> dict[str, AnyResult]:
        """The latest results, without those of weights that `model` no longer has."""
        key = weights_key(model)
        return {name: result for name, result in self.latest.items() if self._weights.get(name) == key}

    def comparable(self, results: Mapping[str, AnyResult]) -> dict[str, AnyResult]:
        """The results before training that are of the same data as these latest ones."""
        return {
            name: before
            for name, before in self.before.items()
            if name in results
            and self._data.get(name) == self._data_before.get(name)
            and (type(results[name]), results[name].sizes) == (type(before), before.sizes)
        }

    def retention(self, after: Mapping[str, AnyResult], model: nn.Module) -> dict[str, Retention]:
        """The retention sets before training and, as measured now of `model`, after it."""
        kept = {name: Retention(before, after[name]) for name, before in self.retention_before.items()}
        self._retention = (weights_key(model) if kept else "", kept)
        return kept

    def retention_of(self, model: nn.Module) -> dict[str, Retention]:
        """The latest of these; none if it is of weights that `model` no longer has."""
        key, kept = self._retention
        return kept if kept and key == weights_key(model) else {}

    def state(self, model: nn.Module) -> dict[str, Any]:
        """What a checkpoint of `model` keeps, for JSON."""
        parts: dict[str, Mapping[str, AnyResult]] = {
            "zero_shot": self.before,
            "retention_before": self.retention_before,
            "results": self.of(model),
        }
        kept: dict[str, Any] = {
            key: {name: result.as_dict() for name, result in part.items()} for key, part in parts.items()
        }
        return {**kept, "data": self._data, "data_before": self._data_before}

    def resume(self, content: Mapping[str, Any], model: nn.Module) -> None:
        """Training continues from a checkpoint, which `model` was loaded from; `content` is what `state` returned."""
        self.at_start = False
        self.before.update(_results_in(content, "zero_shot"))
        self.retention_before.update(_results_in(content, "retention_before"))
        self._data_before.update(content.get("data_before", {}))
        self.load(content, model)

    def load(self, content: Mapping[str, Any], model: nn.Module) -> None:
        """`model` has the weights of a checkpoint, so the latest results are those that were measured of it."""
        _replace(self.latest, _results_in(content, "results"))
        self._data = dict(content.get("data", {}))
        self._weights = dict.fromkeys(self.latest, weights_key(model))


def weights_key(model: nn.Module) -> str:
    """A key that changes with the weights of a model, from some entries of what this process holds of each."""
    digest = hashlib.blake2b(digest_size=16)
    with torch.no_grad():
        for value in chain(model.parameters(), model.buffers()):
            local = (value.to_local() if isinstance(value, DTensor) else value.detach()).flatten()
            # A copy: FSDP could not resize a parameter that NumPy has seen.
            sample = local[:: max(1, len(local) // _SAMPLED)].clone()
            digest.update(sample.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def data_key(examples: Any, own: Any) -> str:
    """A key for a dataset: the name of the one among the evaluation sets `own` that it is, or a fingerprint."""
    named = own if isinstance(own, dict) else {"eval": own}
    names = {_fingerprint(part): name for name, part in named.items() if part is not None}
    return str(names.get(_fingerprint(examples), _fingerprint(examples)))


def _fingerprint(examples: Any) -> str:
    dataset = getattr(examples, "dataset", examples)
    return str(getattr(dataset, "_fingerprint", id(dataset)))


def _replace(target: dict[str, AnyResult], content: Mapping[str, AnyResult]) -> None:
    target.clear()
    target.update(content)


def _results_in(content: Mapping[str, Any], key: str) -> dict[str, AnyResult]:
    return {name: result_from_dict(result) for name, result in content.get(key, {}).items()}
