"""Interpolation of weights between two models, and evaluation of the interpolated models."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.evaluation.results import CurvePoint, EvaluationResult
from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.models.adapters import check_adapters, is_adapted, merged_copy
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import HEAD_NAME, rows_of_head
from starft_hf.models.loading import load_processor
from starft_hf.models.modes import evaluation_mode
from starft_hf.models.precision import exact_copy
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

ModelT = TypeVar("ModelT", bound=nn.Module)

ALPHAS = tuple(step / 10 for step in range(11))

# Numbers of an `EvaluationResult`.
_LOWER_IS_BETTER = ("loss", "ece", "gap")
MEASURES = ("accuracy", "worst_group_accuracy", "group_adjusted_accuracy", *_LOWER_IS_BETTER)

# Settings with which the same weights compute something else. Token ids are not among them: `Trainer` sets those of
# the model it trains to the tokenizer's.
_COMPUTATION = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps", "batch_norm_eps")


def interpolate(model_a: ModelT, model_b: nn.Module, alpha: float, processing_class: Any = None) -> ModelT:
    """Return a new model with weights `(1 - alpha) * a + alpha * b`, as in WiSE-FT (arXiv 2109.01903).

    Weights are mixed in float32 or wider. Their dtype, and integers, are those of `model_a`. If one of the models has
    the trained head of a cross-entropy run, as its module `classification_head`, it is interpolated with the zero-shot
    head of the other model for the same classes and prompts. A `PeftModel` is merged first, and the new model is a
    plain one.

    Args:
        model_a: usually the zero-shot model.
        model_b: usually the fine-tuned model, of the same architecture, maybe with an adapter.
        alpha: weight of `model_b`, from 0 to 1.
        processing_class: the processor, for a zero-shot head; None loads it from the checkpoint of the model.

    Raises:
        ValueError: if `alpha` is outside [0, 1] or the models do not match, naming the first difference; or if a
            zero-shot head is needed, and there is no processor or the classes of the trained one are unknown.
    """
    check_alpha(alpha)
    merged, state_a, state_b = _prepared(model_a, model_b, processing_class)
    _mix_into(merged, state_a, state_b, alpha)
    return merged


@dataclass(frozen=True)
class Sweep:
    """Results of interpolated models.

    Attributes:
        alphas: weights of the second model, in the order they were given.
        results: for each of them, the results by dataset.
    """

    alphas: tuple[float, ...]
    results: tuple[Mapping[str, EvaluationResult], ...]

    def values(self, dataset: str, measure: str = "worst_group_accuracy") -> tuple[float, ...]:
        """A measure on a dataset at each alpha.

        Args:
            dataset: a name that `evaluate` returned.
            measure: "accuracy", "worst_group_accuracy", "group_adjusted_accuracy", "loss", "ece" or "gap".

        Raises:
            ValueError: if there is no such dataset or measure, or the measure is missing at an alpha.
        """
        if dataset not in self.results[0]:
            raise ValueError(unknown_name("dataset", dataset, self.results[0]))
        if measure not in MEASURES:
            raise ValueError(unknown_name("measure", measure, MEASURES))
        values = [getattr(results[dataset], measure) for results in self.results]
        for alpha, value in zip(self.alphas, values, strict=True):
            if value is None or math.isnan(value):
                raise ValueError(f"{measure} of {dataset!r} is {value} at alpha {alpha}; choose another measure")
        return tuple(values)

    def best(self, dataset: str, measure: str = "worst_group_accuracy") -> float:
        """The alpha with the best value: the highest accuracy, or the lowest loss, calibration error or gap.

        Ties go to the lowest alpha, whose model is closest to the first. Choose on held-out data: a value that is the
        best of several is optimistic on the data it was chosen on. Raises as `values` does.
        """
        sign = -1 if measure in _LOWER_IS_BETTER else 1
        scored = zip(self.alphas, self.values(dataset, measure), strict=True)
        return max(scored, key=lambda point: (sign * point[1], -point[0]))[0]

    def curve(
        self,
        average_on: str,
        worst_group_on: str,
        average_measure: str = "accuracy",
        worst_group_measure: str = "accuracy",
    ) -> tuple[CurvePoint, ...]:
        """Points to plot one dataset against another, in the order of `alphas`; raises as `values` does.

        Both may be one dataset under two measures, such as its accuracy and its worst-group accuracy.
        """
        values = self.values(average_on, average_measure), self.values(worst_group_on, worst_group_measure)
        return tuple(CurvePoint(*point) for point in zip(self.alphas, *values, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """The sweep for JSON."""
        results = [{name: result.as_dict() for name, result in part.items()} for part in self.results]
        return {"alphas": list(self.alphas), "results": results}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Sweep":
        """The inverse of `as_dict`."""
        results = [{name: EvaluationResult.from_dict(part[name]) for name in part} for part in content["results"]]
        return cls(tuple(content["alphas"]), tuple(results))


def sweep(
    model_a: ModelT,
    model_b: nn.Module,
    evaluate: Callable[[ModelT], Mapping[str, EvaluationResult]],
    alphas: Sequence[float] = ALPHAS,
    processing_class: Any = None,
) -> Sweep:
    """Evaluate interpolations of two models, which stay as they are.

    One further model is in memory: it is overwritten for each alpha, so `evaluate` must not keep it.

    Args:
        model_a: usually the zero-shot model.
        model_b: usually the fine-tuned model, of the same architecture.
        evaluate: from a model in eval mode, without gradients, to its results by name of dataset.
        alphas: weights of `model_b`, from 0 to 1.
        processing_class: as for `interpolate`, as are models with a trained head.

    Raises:
        ValueError: before anything is evaluated, if `alphas` is empty, one is outside [0, 1], or the models do not
            match; later, if the evaluations do not return results of the same datasets.
    """
    alphas = tuple(alphas)
    if not alphas:
        raise ValueError("alphas is empty; pass weights of the second model, from 0 to 1")
    for alpha in alphas:
        check_alpha(alpha)
    merged, state_a, state_b = _prepared(model_a, model_b, processing_class)
    results: list[Mapping[str, EvaluationResult]] = []
    for alpha in alphas:
        _mix_into(merged, state_a, state_b, alpha)
        with evaluation_mode(merged):
            found = evaluate(merged)
        _check_results(found, results[0] if results else found)
        results.append(dict(found))
    return Sweep(alphas, tuple(results))


def check_alpha(alpha: float) -> None:
    """Raise ValueError if `alpha` is outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it is the weight of the second model and must be from 0 to 1")


def mixed(value_a: Tensor, value_b: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) * a + alpha * b`, computed in float32 or wider, in the dtype of `value_a`; integers are those of a.

    At alpha 0 and 1 it is one of the two, without a rounding error if the dtypes agree.
    """
    if not value_a.is_floating_point():
        return value_a
    dtype = torch.promote_types(torch.promote_types(value_a.dtype, value_b.dtype), torch.float32)
    return torch.lerp(value_a.to(dtype), value_b.to(value_a.device, dtype), alpha).to(value_a.dtype)


def warn_of_statistics(names: Iterable[str], read: Callable[[str], Sequence[Tensor]]) -> None:
    """Warn if models whose weights are averaged have other running statistics of batch norm than each other.

    Args:
        names: of all tensors.
        read: from such a name to the tensors of the models.
    """
    for name in names:
        if name.endswith((".running_mean", ".running_var")):
            first, *others = read(name)
            if not all(torch.equal(first, other.to(first.device)) for other in others):
                logger.warning_once(
                    "The models differ in running statistics of batch norm, such as %r: one was trained with "
                    "freeze_batch_norm=False. Those of the averaged model are only averages; recompute them on "
                    "training images, for example with torch.optim.swa_utils.update_bn.",
                    name,
                )
                return


def check_same_architecture(model_a: nn.Module, model_b: nn.Module) -> None:
    """Raise ValueError, naming the first difference, if two models cannot be interpolated."""
    traits = [traits_of(model.state_dict(), getattr(model, "config", None)) for model in (model_a, model_b)]
    _check_alike(*traits)


def _check_alike(traits_a: Mapping[str, Any], traits_b: Mapping[str, Any]) -> None:
    found = difference(traits_a, traits_b, "the first", "the second")
    if found is not None:
        raise ValueError(f"the models differ: {found}; only models of one architecture can be interpolated")


def difference(traits_a: Mapping[str, Any], traits_b: Mapping[str, Any], name_a: str, name_b: str) -> str | None:
    """The first trait in which two models differ, as a clause, or None."""
    for name in [*traits_a, *traits_b]:
        value_a, value_b = (repr(traits[name]) if name in traits else "nothing" for traits in (traits_a, traits_b))
        if value_a != value_b:
            return f"{name!r} is {value_a} in {name_a} and {value_b} in {name_b}"
    return None


def traits_of(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Any]:
    """What has to be the same in two models for their weights to be averaged: shapes, and settings of `config`."""
    content = config.to_dict() if hasattr(config, "to_dict") else config
    settings = _computation_of(content) if isinstance(content, Mapping) else {}
    return {name: tuple(value.shape) for name, value in tensors.items()} | settings


def _computation_of(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: config[name] for name in _COMPUTATION if name in config}
    for part, inner in config.items():
        if isinstance(inner, Mapping):
            found |= {f"{part}.{name}": value for name, value in _computation_of(inner).items()}
    return found


def _mix_into(model: nn.Module, state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(mixed(state_a[name], state_b[name], alpha))


def _prepared(
    model_a: ModelT, model_b: nn.Module, processing_class: Any
) -> tuple[ModelT, dict[str, Tensor], dict[str, Tensor]]:
    """A copy of the first model to mix weights into, and the weights of both, with the same head or none."""
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        if not isinstance(model, nn.Module):
            raise ValueError(f"{name} is a {type(model).__name__}; pass a model, such as load(folder).model")
        check_adapters(model)
    # Averaging the factors of adapters would not average models.
    models: list[Any] = [merged_copy(model) if is_adapted(model) else model for model in (model_a, model_b)]
    states = [model.state_dict() for model in models]
    heads = [getattr(model, HEAD_NAME, None) for model in models]
    one_head = heads.count(None) == 1
    kept = [{name: value for name, value in state.items() if not name.startswith(f"{HEAD_NAME}.")} for state in states]
    traits = [
        traits_of(state, getattr(model, "config", None))
        for state, model in zip(kept if one_head else states, models, strict=True)
    ]
    _check_alike(*traits)
    warn_of_statistics(kept[0], lambda name: [state[name] for state in kept])
    merged: Any = exact_copy(models[0])
    if heads.count(None) == 0:
        states[1] |= _in_order_of(*heads).state_dict(prefix=f"{HEAD_NAME}.")
    if one_head:
        place = heads.index(None)
        head = _zero_shot_head(models[place], heads[1 - place], processing_class)
        states[place] = states[place] | head.state_dict(prefix=f"{HEAD_NAME}.")
        if place == 0:
            merged.add_module(HEAD_NAME, copy.deepcopy(head))
    return merged, states[0], states[1]


def _in_order_of(first: Any, second: Any) -> nn.Linear:
    """The second of two trained heads with its rows in the order of the classes of the first.

    Raises:
        ValueError: if they have other classes.
    """
    names_a, names_b = (getattr(head, "class_names", None) for head in (first, second))
    if names_a is None or names_b is None or tuple(names_a) == tuple(names_b):
        return second
    if sorted(names_a) != sorted(names_b):
        found = next(name for name in (*names_a, *names_b) if name not in names_a or name not in names_b)
        raise ValueError(
            f"the heads of the models have other classes, such as {found!r}; interpolate models of the same"
        )
    return rows_of_head(second, names_b, names_a)


def _zero_shot_head(model: nn.Module, trained: Any, processing_class: Any) -> nn.Linear:
    names, templates = (getattr(trained, name, None) for name in ("class_names", "templates"))
    if names is None or templates is None:
        raise ValueError(
            f"one of the models has a {HEAD_NAME} whose classes and prompts are unknown, so no zero-shot head can be "
            f"made for the other; add a head to it, by add_module({HEAD_NAME!r}, ...)"
        )
    return zero_shot_head(model, DualEncoder.of(model, load_processor(model, processing_class)), names, templates)


def _check_results(found: Any, first: Mapping[str, EvaluationResult]) -> None:
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"evaluate returned {found!r}; it must return an EvaluationResult by name of dataset")
    for name, result in found.items():
        if not isinstance(result, EvaluationResult):
            raise ValueError(
                f"evaluate returned a {type(result).__name__} for {name!r}; it must return an EvaluationResult"
            )
    if found.keys() != first.keys():
        raise ValueError(
            f"evaluate returned results of {sorted(found)} after those of {sorted(first)}; every model has to be "
            "evaluated on the same datasets"
        )
