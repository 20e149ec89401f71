"""What of a model is trained, and how fast: `freeze`, `layer_decay` and `learning_rates`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers.utils import logging

from starft_hf.models.adapters import base_model_of, is_adapted
from starft_hf.models.families import family_of
from starft_hf.models.modes import unwrapped
from starft_hf.models.parts import (
    EMBEDDINGS,
    HEAD,
    LAYERS,
    LOGIT_SCALE,
    TEXT,
    TOWERS,
    VISION,
    Part,
    PartName,
    check_named,
    merged,
    number_of_layers,
    parts_of,
    value_of,
)


logger = logging.get_logger(__name__)

# Their rates are the same for all parameters of an update, which they make within the backward pass.
_FUSED_WITH_BACKWARD = ("layerwise", "lomo")


def frozen_names(freeze: str | Sequence[str] | None, base_loss: str) -> list[str] | None:
    """`freeze` as a list of names, or None if it is empty.

    Raises:
        ValueError: if a name is not one of a part of any model, or nothing would be left to train.
    """
    names = [freeze] if isinstance(freeze, str) else list(freeze or ())
    for name in names:
        PartName.parse(name, "freeze")
    _check_head("freeze", names, base_loss)
    if {VISION, TEXT} <= set(names) and (base_loss != "cross_entropy" or HEAD in names):
        raise ValueError(f"freeze={names!r} leaves nothing to train but the temperature; {_KEEP}")
    return names or None


_KEEP = "leave out what is to be trained, such as 'vision'"


def rates_by_name(given: Mapping[str, float] | Sequence[str] | None, base_loss: str) -> dict[str, float] | None:
    """`learning_rates` as numbers by name, from a dictionary or from strings such as "vision=0.2"; None if empty.

    Raises:
        ValueError: if a name is not one of a part of any model, a number is not positive, or two names of the same
            precision have layers in common.
    """
    if isinstance(given, str):
        given = [given]
    pairs = given.items() if isinstance(given, Mapping) else [_pair(text) for text in given or ()]
    rates: dict[str, float] = {}
    for name, number in pairs:
        part = PartName.parse(name, "learning_rates")
        rates[name] = _positive(name, number)
        other = next((other for other in map(_parsed, rates) if other != part and _overlap(part, other)), None)
        if other is not None:
            raise ValueError(
                f"learning_rates has {other.text!r} and {name!r}, which have layers in common; separate the ranges"
            )
    _check_head("learning_rates", rates, base_loss)
    return rates or None


def _parsed(name: str) -> PartName:
    return PartName.parse(name, "learning_rates")


def _overlap(one: PartName, other: PartName) -> bool:
    if one.layers is None or other.layers is None or one.tower != other.tower:
        return False
    return bool(set(one.layers) & set(other.layers))


def _pair(text: object) -> tuple[str, object]:
    name, equals, number = str(text).partition("=")
    if not equals:
        raise ValueError(
            f"learning_rates has {text!r}; write a part and its multiple of learning_rate, as 'vision=0.2'"
        )
    return name, number


def _positive(name: str, number: object) -> float:
    try:
        value = float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(
            f"learning_rates has {number!r} for {name!r}; it must be a positive number, a multiple of learning_rate. "
            f"freeze=[{name!r}] does not train it"
        )
    return value


def _check_head(setting: str, names: Iterable[str], base_loss: str) -> None:
    if HEAD in names and base_loss != "cross_entropy":
        raise ValueError(f"{setting} has {HEAD!r}, and base_loss={base_loss!r} has no linear head; leave it out")


def check_groups(args: Any, optimizer: Any = None) -> None:
    """Raise ValueError if learning rates of their own are asked for, and the optimizer cannot have them.

    Args:
        args: the settings, a `StarFTConfig`.
        optimizer: as the user passed it, or None.
    """
    asked = [name for name in ("layer_decay", "learning_rates") if getattr(args, name) is not None]
    if not asked:
        return
    kind = str(getattr(args.optim, "value", args.optim))
    if any(word in kind for word in _FUSED_WITH_BACKWARD):
        raise ValueError(
            f"{asked[0]} has no effect with optim={kind!r}, which has one learning rate; use 'adamw_torch'"
        )
    if optimizer is not None:
        raise ValueError(
            f"{asked[0]} has no effect on the optimizer of `optimizers`, whose learning rates were set when it was "
            "made; leave it out, or pass optimizer_cls_and_kwargs=(torch.optim.AdamW, {'lr': ...}) instead"
        )


def freeze_parts(model: nn.Module, args: Any) -> None:
    """Freeze the parts that `args.freeze` names in a model, possibly adapted, and check those of `learning_rates`.

    Under an adapter these are the weights of the adapter in the named parts. The head is frozen by `freeze_head`.

    Raises:
        ValueError: if the model lacks a part that is named, or nothing but the temperature would be left to train.
    """
    parts, kind = parts_of(model), type(base_model_of(model)).__name__
    freeze = [PartName.parse(name, "freeze") for name in args.freeze or () if name != HEAD]
    rates = [_parsed(name) for name in args.learning_rates or () if name != HEAD]
    check_named(freeze, set(parts.values()), "freeze", kind)
    check_named(rates, set(parts.values()), "learning_rates", kind)
    _check_layers(args, parts, kind)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    chosen = {name for name in trained if any(one.means(parts[name]) for one in freeze)}
    left = {parts[name] for name in trained.keys() - chosen}
    if chosen and args.base_loss != "cross_entropy" and left <= {Part(LOGIT_SCALE)}:
        what = "of the adapter " if is_adapted(model) else ""
        raise ValueError(f"freeze={args.freeze!r} leaves nothing {what}to train but the temperature; {_KEEP}")
    before = {part for name, part in parts.items() if name not in trained and not any(o.means(part) for o in freeze)}
    if before and not is_adapted(model):
        frozen = ", ".join(merged(before, set(parts.values())))
        logger.warning_once(
            f"Parameters of {frozen} have requires_grad=False and are not trained, though freeze does not name them; "
            "call model.requires_grad_(True) before, if that is left from another run."
        )
    for one in freeze:
        if not any(one.means(parts[name]) for name in trained):
            logger.warning_once(f"freeze={one.text!r} has no effect: {_untrained(model)}.")
    for one in rates:
        if not any(one.means(part) for part in left):
            logger.warning_once(f"learning_rates of {one.text!r} has no effect: {_untrained(model)}.")
    for name in chosen:
        trained[name].requires_grad_(False)


def _untrained(model: nn.Module) -> str:
    return "the adapter trains nothing there" if is_adapted(model) else "nothing of it is trained"


def _check_layers(args: Any, parts: Mapping[str, Part], kind: str) -> None:
    without = [tower for tower in TOWERS if not number_of_layers(parts.values(), tower)]
    if args.layer_decay is not None and without:
        raise ValueError(
            f"layer_decay={args.layer_decay:g} needs layers, and the {without[0]} tower of this {kind} has none that "
            f"can be told apart; use learning_rates={{'{without[0]}': 0.2}}"
        )


def frozen_towers(model: nn.Module) -> list[nn.Module]:
    """The towers of a dual encoder, possibly adapted, of which nothing is trained."""
    base, family = base_model_of(model), family_of(base_model_of(model))
    towers = [getattr(base, name, None) for name in (family.vision_tower, family.text_tower)]
    return [tower for tower in towers if isinstance(tower, nn.Module) and not _is_trained(tower)]


def frozen_norms(model: nn.Module, freeze: Sequence[str] | None) -> list[nn.Module]:
    """The batch norms in the parts that `freeze` names, whose running statistics must stay as they are, too."""
    names, parts = [PartName.parse(name, "freeze") for name in freeze or ()], parts_of(model)
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and any(one.means(parts[f"{path}.{key}"]) for key in module._parameters for one in names)
    ]


def embeds_texts_alike(model: nn.Module) -> bool:
    """Whether nothing is trained that the text embeddings of a model depend on."""
    base, family = base_model_of(model), family_of(base_model_of(model))
    tower = getattr(base, family.text_tower, None)
    rest = {part for name, part in parts_of(model).items() if model.get_parameter(name).requires_grad}
    return (
        isinstance(tower, nn.Module)
        and not _is_trained(tower)
        and not any(part.tower == TEXT or part.kind == "other" for part in rest)
    )


def _is_trained(module: nn.Module) -> bool:
    return any(value.requires_grad for value in module.parameters())


def rate_factors(model: nn.Module, args: Any) -> dict[str, float]:
    """What the learning rate of each trained parameter is multiplied by, by name.

    With `layer_decay`, that of layer l of a tower with L layers, counted from 0, is `layer_decay ** (L - l)`, and that
    of its embeddings `layer_decay ** (L + 1)`. It is multiplied by the most precise entry of `learning_rates`.
    """
    rates = {_parsed(name): rate for name, rate in (args.learning_rates or {}).items()}
    parts = parts_of(model)
    depths = {tower: number_of_layers(parts.values(), tower) for tower in TOWERS}
    decay = 1.0 if args.layer_decay is None else args.layer_decay
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    return {
        name: value_of(rates, part) * decay ** _distance(part, depths)
        for name, part in parts.items()
        if name in trained
    }


def _distance(part: Part, depths: Mapping[str, int]) -> int:
    """How many layers a part is below what follows the layers of its tower."""
    if part.tower is None or part.kind not in (EMBEDDINGS, LAYERS):
        return 0
    return depths[part.tower] + 1 if part.layer is None else depths[part.tower] - part.layer


def with_rates(optimizer: Any, model: nn.Module, args: Any) -> Any:
    """`optimizer`, whose groups of parameters are divided by their learning rates, changed in place.

    The first group is the one whose rate is nearest to `learning_rate`, which Trainer logs.
    """
    model = unwrapped(model)
    factors = rate_factors(model, args)
    if set(factors.values()) <= {1.0}:
        return optimizer
    by_id = {id(value): factors[name] for name, value in model.named_parameters() if name in factors}
    groups = []
    for group in optimizer.param_groups:
        parameters: dict[float, list[Any]] = {}
        for value in group["params"]:
            parameters.setdefault(by_id.get(id(value), 1.0), []).append(value)
        groups += [
            (factor, {**group, "params": own, "lr": group["lr"] * factor}) for factor, own in parameters.items()
        ]
    optimizer.param_groups[:] = [group for _, group in sorted(groups, key=lambda pair: abs(pair[0] - 1))]
    return optimizer


def trained_parts(model: nn.Module, args: Any) -> dict[str, Any]:
    """What of a model is trained, and at which learning rates, as values that JSON can hold.

    Returns:
        "parameters", the number of those that are trained; "frozen", the parts of which nothing is trained; and
        "learning_rates", a list of "learning_rate", "parts" and "parameters", from the highest rate to the lowest.
    """
    parts, factors = parts_of(model), rate_factors(model, args)
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    trained = {parts[name] for name in factors}
    everything = list(dict.fromkeys(parts.values()))
    by_rate: dict[float, list[str]] = {}
    for name, factor in factors.items():
        by_rate.setdefault(factor * args.learning_rate, []).append(name)
    return {
        "parameters": sum(sizes[name] for name in factors),
        "frozen": merged([part for part in everything if part not in trained], everything),
        "learning_rates": [
            {
                "learning_rate": rate,
                "parts": merged([parts[name] for name in by_rate[rate]], [*trained]),
                "parameters": sum(sizes[name] for name in by_rate[rate]),
            }
            for rate in sorted(by_rate, reverse=True)
        ],
    }


def describe(trained: Mapping[str, Any]) -> str:
    """What `trained_parts` returns, as a sentence for the log."""
    groups = "; ".join(
        f"{group['learning_rate']:.3g} {', '.join(group['parts'])}" for group in trained["learning_rates"]
    )
    frozen = f" Frozen: {', '.join(trained['frozen'])}." if trained["frozen"] else ""
    return f"{trained['parameters']:,} parameters are trained. Learning rates: {groups}.{frozen}"
