"""What DDP, FSDP 2 and Accelerate need that dual encoders of transformers do not provide."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import StateDictType
from torch.distributed.tensor import DTensor

from starft_hf.models.precision import remove_autocast


def full_tensor(tensor: Tensor) -> Tensor:
    """`tensor` itself, or the gathered tensor if FSDP has sharded it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def prepare_for_sharding(model: nn.Module) -> list[str]:
    """Change a dual encoder in place so that FSDP 2 can shard it; returns the names of its scalar parameters.

    FSDP 2 cannot shard scalars, such as the temperature: they become vectors of length 1, which compute the same. And
    Accelerate calls `get_input_embeddings`, which raises on dual encoders: there, it returns None.
    """
    scalars = [name for name, value in model.named_parameters() if value.ndim == 0]
    for name in scalars:
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        scalar = getattr(owner, attribute)
        setattr(owner, attribute, nn.Parameter(scalar.detach().reshape(1), requires_grad=scalar.requires_grad))
    for module in model.modules():
        if hasattr(module, "get_input_embeddings"):
            try:
                cast(Any, module).get_input_embeddings()
            except NotImplementedError:
                cast(Any, module).get_input_embeddings = lambda: None
    return scalars


def with_scalars(state_dict: Mapping[str, Tensor], scalars: Iterable[str]) -> dict[str, Tensor]:
    """A state dict to be saved, in which the parameters named in `scalars` are scalars again."""
    return {name: value.reshape(()) if name in set(scalars) else value for name, value in state_dict.items()}


def complete_state(optimizer: Any) -> None:
    """Give an optimizer a state, in place, of parameters that no loss has reached yet.

    FSDP 2 saves what is there, and loads only if every trained parameter has a state. This one is what the optimizer
    itself starts with at the first gradient.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    without = {value: value.detach().clone() for value in parameters if _lacks_state(value, optimizer)}
    if not without:
        return
    gradients, rates = [value.grad for value in parameters], [group["lr"] for group in optimizer.param_groups]
    for value in parameters:
        value.grad = torch.zeros_like(value) if value in without else None
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for value, before in without.items():
        # Some optimizers decay weights at a rate of their own.
        value.data.copy_(before)
        if "step" in optimizer.state.get(value, {}):
            optimizer.state[value]["step"] *= 0
    for value, gradient in zip(parameters, gradients, strict=True):
        value.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _lacks_state(value: Tensor, optimizer: Any) -> bool:
    return value.requires_grad and value not in optimizer.state


def check_mergeable(model: nn.Module) -> None:
    """Check that FSDP has not sharded a model with an adapter to merge; if it has, a ValueError in all processes."""
    if any(isinstance(value, DTensor) for value in model.parameters()):
        raise ValueError(
            "FSDP has sharded the model, and its adapter cannot be merged in place; save it with "
            "save_model('adapter') and merge it after the run: starft merge adapter merged"
        )


@contextmanager
def whole_weights(accelerator: Any) -> Iterator[None]:
    """Within, `Trainer` saves a model that FSDP has sharded as a whole, whatever `fsdp_state_dict_type` is.

    Otherwise it would save no model but a checkpoint's shards with "SHARDED_STATE_DICT", the default of Accelerate.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    asked, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = asked


def forget_dataloader(accelerator: Any, dataloader: Any) -> None:
    """Let Accelerate release a data loader that it has prepared: it would keep every one, with its dataset."""
    accelerator._dataloaders[:] = [each for each in accelerator._dataloaders if each is not dataloader]


def forget_preparation(accelerator: Any, model: Any) -> None:
    """Let Accelerate prepare a model for training that it has prepared for evaluation already.

    It has marked the model as prepared without wrapping it: every process would train a model of its own.
    """
    if vars(model).pop("_is_accelerate_prepared", False):
        accelerator._models.clear()


def check_version(accelerator: Any) -> None:
    """Raise ValueError if weights would be sharded by FSDP 1, whose parameters hold no values by themselves."""
    if getattr(_fsdp_plugin(accelerator), "fsdp_version", 2) != 2:
        raise ValueError(
            "FSDP 1 flattens the weights of several layers together, and StarFT reads single ones, such as the "
            "temperature; set fsdp_version: 2 in the configuration of Accelerate (starft accelerate-config fsdp2)"
        )


def ready_accelerator(accelerator: Any, model: nn.Module, args: Any) -> None:
    """Check an accelerator, and let DDP find the parameters that no loss reaches under gradient checkpointing, too.

    `Trainer` turns that off there, since reentrant checkpointing hides parameters from DDP. Then a run stops at its
    second step if a parameter has no gradient, such as the temperature with cross-entropy or a pooler that a family
    does not use.

    Raises:
        ValueError: with FSDP 1, and with reentrant checkpointing where the temperature has no gradient.
    """
    check_version(accelerator)
    ddp = accelerator.ddp_handler
    if ddp is None or args.ddp_find_unused_parameters is not None:
        return
    ddp.find_unused_parameters = not _is_reentrant(model, args)
    is_ddp = accelerator.num_processes > 1 and _fsdp_plugin(accelerator) is None
    if is_ddp and args.base_loss == "cross_entropy" and not ddp.find_unused_parameters:
        raise ValueError(
            "base_loss='cross_entropy' does not train the temperature, and with several processes reentrant gradient "
            "checkpointing needs a gradient of every parameter; set use_reentrant=False, the default"
        )


def _is_reentrant(model: nn.Module, args: Any) -> bool:
    """Whether gradient checkpointing is reentrant, by the settings or as it was switched on before."""
    enabled = [getattr(part, "_gradient_checkpointing_func", None) for part in model.modules()]
    given = [args.gradient_checkpointing_kwargs, *(getattr(function, "keywords", None) for function in enabled)]
    return any((keywords or {}).get("use_reentrant") for keywords in given)


def _fsdp_plugin(accelerator: Any) -> Any:
    # Accelerate has the attribute only with FSDP.
    return getattr(accelerator.state, "fsdp_plugin", None)


def ready_to_train(trainer: Any) -> list[str]:
    """Make the model of a `Trainer` ready to be prepared for training; returns the names of what were scalars."""
    if trainer.model_wrapped is trainer.model:
        forget_preparation(trainer.accelerator, trainer.model)
    return prepare_for_sharding(trainer.model) if trainer.is_fsdp_enabled else []


@contextmanager
def before_sharding(trainer: Any) -> Iterator[None]:
    """Within, every process of a `Trainer` evaluates the whole model on its device, if FSDP has not sharded it yet.

    FSDP 2 shards a model only together with its optimizer, which there is not before training.
    """
    model, accelerator = trainer.model, trainer.accelerator
    if not trainer.is_fsdp_enabled or accelerator._models or trainer.model_wrapped is not model:
        yield
        return
    device = next(model.parameters()).device
    trainer.is_fsdp_enabled = False
    try:
        model.to(accelerator.device)
        yield
    finally:
        trainer.is_fsdp_enabled = True
        # Back to the forward without autocast, which FSDP 2 does without.
        remove_autocast(model)
        forget_preparation(accelerator, model)
        model.to(device)
