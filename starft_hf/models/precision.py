"""The autocast of a run in half precision, which Accelerate puts around the forward of a model and leaves there."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any, TypeVar, cast

from torch import nn


ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Where Accelerate keeps the forward from before.
_ORIGINAL = "_original_forward"


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Within, a model has the forward from before Accelerate put it under autocast, if it has, as in an evaluation."""
    if "forward" not in vars(model) or not keeps_autocast(model):
        yield
        return
    prepared = model.forward
    model.forward = _forward_before(model)
    try:
        yield
    finally:
        model.forward = prepared


def remove_autocast(model: ModuleT) -> ModuleT:
    """`model`, changed in place to compute in the dtype of its weights again, after a run in half precision."""
    if keeps_autocast(model):
        forward = _forward_before(model)
        delattr(model, _ORIGINAL)
        if getattr(forward, "__func__", None) is type(model).forward:
            # That of the class is there without being set.
            vars(model).pop("forward", None)
        else:
            model.forward = forward
    return model


def keeps_autocast(model: nn.Module) -> bool:
    """Whether a run in half precision has left its autocast around the forward of a model."""
    return _ORIGINAL in vars(model)


def exact_copy(model: ModuleT) -> ModuleT:
    """A deep copy that computes in the dtype of its weights, also if a run in half precision trained the model."""
    return remove_autocast(copy.deepcopy(model))


def _forward_before(model: nn.Module) -> Any:
    forward: Any = vars(model)[_ORIGINAL]
    # That of several runs is wrapped several times. A forward that is not the class's own is somebody else's.
    function = getattr(forward, "__func__", None)
    while function is not None and function is not type(model).forward:
        function = getattr(function, "__wrapped__", None)
    return forward if function is None else MethodType(function, model)


def forward_autocast(accelerator: Any) -> AbstractContextManager[Any]:
    """The autocast that Accelerate puts around the forward of a prepared model; FSDP 2 casts without one."""
    return nullcontext() if accelerator.is_fsdp2 else run_autocast(accelerator)


def run_autocast(accelerator: Any) -> AbstractContextManager[Any]:
    """The autocast of a run, for a model that is not prepared."""
    return cast(AbstractContextManager[Any], accelerator.autocast())
