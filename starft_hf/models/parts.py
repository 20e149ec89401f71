"""The parts of a dual encoder, by names that are the same for every family, such as "vision.layers.0-5"."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from starft_hf.models.adapters import base_model_of
from starft_hf.models.families import LOGIT_PARAMETERS, family_of
from starft_hf.models.heads import HEAD_NAME
from starft_hf.utils.names import unknown_name


VISION, TEXT = TOWERS = ("vision", "text")
# The parts of a tower, in the order in which a forward passes through them.
EMBEDDINGS, LAYERS, OUTPUT, PROJECTIONS = KINDS = ("embeddings", "layers", "output", "projections")
LOGIT_SCALE, HEAD, OTHER = "logit_scale", "head", "other"
# Those that both towers have are one name for both of them, too.
_SHARED = (EMBEDDINGS, OUTPUT, PROJECTIONS)
_EXAMPLES = (*TOWERS, *(f"{tower}.{kind}" for tower in TOWERS for kind in KINDS), *_SHARED, LOGIT_SCALE, HEAD)
_NAME = re.compile(
    rf"(?P<tower>{'|'.join(TOWERS)})(\.(?P<kind>{'|'.join(KINDS)}))?"
    rf"|(?P<layered>{'|'.join(TOWERS)})\.layers\.(?P<first>\d+)(-(?P<last>\d+))?"
    rf"|(?P<shared>{'|'.join((*_SHARED, LOGIT_SCALE, HEAD))})"
)

KeyT = TypeVar("KeyT")


@dataclass(frozen=True)
class Part:
    """The part of a dual encoder that a parameter belongs to.

    Attributes:
        kind: "embeddings" (before the layers of a tower), "layers", "output" (after them: norm and pooling),
            "projections", "logit_scale" (with the bias of sigmoid models), "head", or "other".
        tower: "vision" or "text"; None outside of the towers and their projections.
        layer: the number of the layer, from 0.
    """

    kind: str
    tower: str | None = None
    layer: int | None = None

    def __str__(self) -> str:
        names = (self.tower, self.kind, self.layer)
        return ".".join(str(name) for name in names if name is not None)


@dataclass(frozen=True)
class PartName:
    """The name of one or several parts, as a setting has it.

    Attributes:
        text: the name.
        tower, kind, layers: what parts must have to be meant; None: any.
        precision: 0 for a tower, 1 for a kind of part, 2 for one part or layers of a tower. Of the names of a part,
            the most precise one counts.
    """

    text: str
    tower: str | None
    kind: str | None
    layers: range | None
    precision: int

    @classmethod
    def parse(cls, text: object, setting: str) -> "PartName":
        """The name; ValueError, which names the setting, if it cannot be one of any model."""
        found = _NAME.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{setting}: {unknown_name('part', text, _EXAMPLES)} Layers: 'vision.layers.0-5'.")
        name = found.group()
        if (shared := found["shared"]) is not None:
            return cls(name, None, shared, None, 1)
        if (tower := found["layered"]) is not None:
            first, last = int(found["first"]), int(found["last"] or found["first"])
            if last < first:
                raise ValueError(f"{setting} has {name!r}, which ends before it begins; write '{tower}.layers.0-5'")
            return cls(name, tower, LAYERS, range(first, last + 1), 2)
        kind = found["kind"]
        return cls(name, found["tower"], kind, None, 0 if kind is None else 1 if kind == LAYERS else 2)

    def means(self, part: Part) -> bool:
        """Whether `part` is one of those that are named."""
        return (
            self.tower in (None, part.tower)
            and self.kind in (None, part.kind)
            and (self.layers is None or part.layer in self.layers)
        )


def parts_of(model: nn.Module) -> dict[str, Part]:
    """The parts of the parameters of a dual encoder, possibly adapted, by the names that the model has for them.

    The parameters of an adapter belong to the part that they adapt.
    """
    # A PeftModel has other names for them, and may hold the head itself.
    own = {id(value): part for value, part in _of_base(base_model_of(model))}
    return {name: own.get(id(value)) or _outside(name) for name, value in model.named_parameters()}


def _of_base(base: nn.Module) -> Iterable[tuple[nn.Parameter, Part]]:
    family = family_of(base)
    projections = {VISION: family.vision_projection, TEXT: family.text_projection}
    towers = {VISION: family.vision_tower, TEXT: family.text_tower}
    layers = {tower: _layers(base, path) for tower, path in towers.items()}
    entered: set[str] = set()
    for name, value in base.named_parameters():
        if (tower := _owner(name, projections)) is not None:
            yield value, Part(PROJECTIONS, tower)
        elif (tower := _owner(name, towers)) is None:
            yield value, _outside(name)
        elif (layer := _owner(name, dict(enumerate(layers[tower])))) is not None:
            entered.add(tower)
            yield value, Part(LAYERS, tower, layer)
        else:
            # Towers register their modules in the order in which they use them, but for some embeddings of positions.
            is_before = bool(layers[tower]) and tower not in entered
            yield value, Part(EMBEDDINGS if is_before or "embed" in name else OUTPUT, tower)


def _outside(name: str) -> Part:
    """The part of a parameter outside of the towers."""
    if f".{HEAD_NAME}." in f".{name}":
        return Part(HEAD)
    return Part(LOGIT_SCALE if name in LOGIT_PARAMETERS else OTHER)


def _owner(name: str, paths: Mapping[KeyT, str]) -> KeyT | None:
    return next((key for key, path in paths.items() if _is_in(name, path)), None)


def _is_in(name: str, path: str) -> bool:
    return f"{name}.".startswith(f"{path}.")


def _layers(base: nn.Module, path: str) -> list[str]:
    """The names of the layers of a tower: of its outermost lists of modules, or else of its longest sequence."""
    inside = {name: part for name, part in base.named_modules() if _is_in(name, path)}
    lists = [name for name, part in inside.items() if isinstance(part, nn.ModuleList) and len(part)]
    outermost = [name for name in lists if not any(_is_in(name, other) for other in lists if other != name)]
    if not outermost:
        sizes = {name: len(part) for name, part in inside.items() if isinstance(part, nn.Sequential)}
        outermost = [max(sizes, key=lambda name: sizes[name])] if sizes else []
    return [f"{name}.{number}" for name in outermost for number, _ in inside[name].named_children()]


def check_named(names: Iterable[PartName], parts: Collection[Part], setting: str, model: str) -> None:
    """Check that a model has the parts that a setting names.

    Args:
        names: the names.
        parts: the parts of the model.
        setting: the name of the setting, for errors.
        model: the name of the model, for errors.

    Raises:
        ValueError: naming the part that is not there, and those that are.
    """
    for name in names:
        if name.layers is not None and (number := number_of_layers(parts, name.tower)) <= name.layers[-1]:
            has = f"has {number} layers, 0 to {number - 1}" if number else "has no layers that can be told apart"
            raise ValueError(f"{setting} has {name.text!r}, and the {name.tower} tower of this {model} {has}")
        if not any(map(name.means, parts)):
            raise ValueError(
                f"{setting} has {name.text!r}, which this {model} does not have; it has {', '.join(merged(parts))}"
            )


def number_of_layers(parts: Collection[Part], tower: str | None) -> int:
    """How many layers a tower has."""
    return max((part.layer + 1 for part in parts if part.tower == tower and part.layer is not None), default=0)


def merged(parts: Collection[Part], whole: Collection[Part] = ()) -> list[str]:
    """The shortest names of parts: ranges of layers, and towers of which all of the parts in `whole` are there."""
    found, own = [], set(parts)
    for tower in TOWERS:
        if own and own >= (everything := {part for part in whole if part.tower == tower}) and everything:
            found.append(tower)
            continue
        for kind in KINDS:
            chosen = [part for part in own if (part.tower, part.kind) == (tower, kind)]
            if kind == LAYERS:
                found += [f"{tower}.{LAYERS}.{span}" for span in _spans({part.layer for part in chosen})]
            elif chosen:
                found.append(f"{tower}.{kind}")
    return [*found, *(kind for kind in (LOGIT_SCALE, HEAD, OTHER) if Part(kind) in own)]


def _spans(numbers: Iterable[int | None]) -> list[str]:
    spans: list[list[int]] = []
    for number in sorted(number for number in numbers if number is not None):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in spans]


def value_of(values: Mapping[PartName, float], part: Part) -> float:
    """The value of the most precise of the names that mean `part`; 1 if none does."""
    meant = [name for name in values if name.means(part)]
    return values[max(meant, key=lambda name: name.precision)] if meant else 1.0
