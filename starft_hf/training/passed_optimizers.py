"""What a resumed run must have in common with its checkpoint of an optimizer and a scheduler that it was passed."""

from collections.abc import Mapping
from types import NoneType
from typing import Any


def passed_optimizers(passed: Mapping[str, Any]) -> dict[str, Any]:
    """What the arguments of a trainer say of the optimizer and the scheduler, for JSON; None where it makes them."""
    optimizer, scheduler = passed.get("optimizers", (None, None))
    given = passed.get("optimizer_cls_and_kwargs")
    if optimizer is not None:
        given = (type(optimizer), optimizer.defaults)
    kind, settings = (None, {}) if given is None else given
    return {
        "the optimizer that was passed": None if kind is None else kind.__name__,
        "the passed settings of the optimizer": {name: _plain(value) for name, value in settings.items()},
        "the scheduler that was passed": None if scheduler is None else type(scheduler).__name__,
    }


def _plain(value: Any) -> Any:
    """A setting as it is if JSON can hold it, else its type: the text of a function has an address."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (bool, int, float, str, NoneType)) else type(value).__name__
