"""PEFT adapters on dual encoders: presets, checks, and saving the temperature, which PEFT does not save."""

import copy
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, cast

from peft import AdaLoraConfig, LNTuningConfig, LoraConfig, PeftConfig, PeftModel, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.models.families import LOGIT_PARAMETERS, family_of
from starft_hf.models.heads import HEAD_NAME
from starft_hf.models.own_code import save_code_of_towers
from starft_hf.utils.files import apply_umask, file_in_place_of
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

# The towers that a preset adapts.
PRESETS = {"lora": ("vision_tower", "text_tower"), "lora-vision": ("vision_tower",), "lora-text": ("text_tower",)}

# The rank of their adapters.
PRESET_RANK = 16

# What they adapt, and the most channels of an image.
_LAYERS = (nn.Linear, nn.Conv2d)
_COLORS = 4

# The values of `init_lora_weights` that leave the base weights as they are.
_STARTS = (True, False, "gaussian", "orthogonal", "eva", "mica")


def resolve_peft_config(config: PeftConfig | str, model: nn.Module) -> PeftConfig:
    """A PEFT configuration that works with `model`, from one or from the name of a preset; ValueError if it does not.

    "lora" puts adapters of rank 16 on the attention projections of both towers, the other presets on those of one.
    A configuration may name a preset as its `target_modules`, for another rank.
    """
    if isinstance(config, str):
        check_preset(config)
        config = LoraConfig(r=PRESET_RANK, lora_alpha=PRESET_RANK, target_modules=config)
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets in PRESETS:
        family = family_of(model)
        towers = [getattr(family, tower) for tower in PRESETS[targets]]
        config = copy.copy(config)
        config.target_modules = "|".join(_preset_targets(targets, model, tower) for tower in towers)
    _check(config, model)
    _check_targets(config, model)
    return config


def _preset_targets(preset: str, model: nn.Module, tower: str) -> str:
    """A pattern for the names of the modules that a preset adapts in a tower; ValueError if there are none."""
    named = dict(model.named_modules())
    # It computes with the weights of its layers, so that an adapter of one would never be used.
    whole = [name for name, part in named.items() if isinstance(part, nn.MultiheadAttention)]
    inside = {name: part for name, part in named.items() if f".{tower}." in f".{name}" and isinstance(part, _LAYERS)}
    layers = {name: part for name, part in inside.items() if name.rpartition(".")[0] not in whole}
    others = rf"(?!({'|'.join(map(re.escape, whole))})\.)" if whole else ""
    known = rf"{others}(.*\.)?{tower}\.(.*\.)?({'|'.join(family_of(model).lora_targets)})"
    if any(_matches(name, known) for name in layers):
        return known
    names = [name for name, part in layers.items() if isinstance(part, nn.Linear) or _mixes_channels(part)]
    if not names:
        of_own = sorted({type(part).__name__ for part in layers.values()} - {"Conv2d"})
        raise ValueError(
            f"peft_config={preset!r} adapts linear layers and convolutions that mix channels, and the {tower}, a "
            f"{type(model.get_submodule(tower)).__name__}, has {'only ' + ', '.join(of_own) if of_own else 'none'}; "
            "pass a LoraConfig whose target_modules PEFT can adapt, or the preset of the other tower"
        )
    return rf"(.*\.)?({'|'.join(map(re.escape, names))})"


def _mixes_channels(module: nn.Module) -> bool:
    # A subclass may take other arguments than PEFT passes. The first convolution sees colors.
    return type(module) is nn.Conv2d and module.groups == 1 and module.in_channels > _COLORS


def check_preset(name: str) -> None:
    """Raise ValueError, with the nearest name, if there is no preset of this name."""
    if name not in PRESETS:
        raise ValueError(unknown_name("peft_config", name, PRESETS))


def _check(config: PeftConfig, model: nn.Module) -> None:
    kind = type(config).__name__
    if isinstance(config, PromptLearningConfig):
        raise ValueError(
            f"{kind} learns virtual tokens, which dual encoders cannot take; use an adapter such as peft_config='lora'"
        )
    if config.task_type is not None:
        raise ValueError(
            f"{kind} has task_type={str(config.task_type)!r}, which makes PEFT pass arguments that dual encoders do "
            "not accept; leave task_type out"
        )
    if isinstance(config, AdaLoraConfig):
        logger.warning(
            "AdaLoraConfig changes its ranks only if update_and_allocate of PEFT is called after every step, which "
            "Trainer does not do: all ranks stay as they start. Call it in a callback, or use a LoraConfig."
        )
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise ValueError(
            f"{kind} has bias={bias!r}, which trains biases of the base model, so that it would no longer be the "
            "reference with the adapter switched off; use bias='none'"
        )
    start = getattr(config, "init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _STARTS:
        raise ValueError(
            f"{kind} has init_lora_weights={start!r}, which may move base weights into the adapter, so that the model "
            f"would no longer be the reference without it; use one of {', '.join(map(repr, _STARTS))}"
        )
    names = {name for name, _ in model.named_modules()}
    for module in getattr(config, "modules_to_save", None) or ():
        if not any(name == module or name.endswith(f".{module}") for name in names):
            hint = "the temperature is trained and saved anyway" if _is_logit_parameter(module) else "name a module"
            raise ValueError(f"modules_to_save has {module!r}, which is not a module, so PEFT would ignore it; {hint}")


def _check_targets(config: PeftConfig, model: nn.Module) -> None:
    targets = getattr(config, "target_modules", None)
    if not targets and not getattr(config, "target_parameters", None):
        raise ValueError(
            f"{type(config).__name__} has no target_modules, and PEFT has no default for {type(model).__name__}; "
            "set them, or use peft_config='lora'"
        )
    if not targets or targets == "all-linear":
        return
    kinds = (nn.Linear, nn.Embedding, nn.Conv2d, *((nn.LayerNorm,) if isinstance(config, LNTuningConfig) else ()))
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    matched = [name for name in names if _matches(name, targets)]
    if not matched:
        ends = sorted({end for name in names if not (end := name.rpartition(".")[-1]).isdigit()})
        kind = type(model).__name__
        raise ValueError(f"target_modules={targets!r} matches nothing in {kind}; its modules end in {', '.join(ends)}")
    family = family_of(model)
    towers = (family.vision_tower, family.text_tower)
    touched = [tower for tower in towers if any(tower in name for name in matched)]
    asked = isinstance(targets, str) or any(tower in target for tower in towers for target in targets)
    if len(touched) == 1 and not asked:
        other = next(tower for tower in towers if tower not in touched)
        raise ValueError(
            f"target_modules={sorted(targets)!r} matches only the {touched[0]}; the {other} would stay as it is. Add "
            "targets of it, or select one tower by a regular expression that names it."
        )


def _matches(name: str, targets: Any) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def with_adapter(model: nn.Module, config: PeftConfig | str | None) -> nn.Module:
    """`model` with the adapter of `config`; the temperature is trained with the adapter.

    ValueError if the configuration does not work with dual encoders, or the model has an adapter already.
    """
    check_adapters(model)
    if is_adapted(model):
        if config is not None:
            raise ValueError("the model has an adapter already; pass either peft_config or a PeftModel")
        for present in cast(PeftModel, model).peft_config.values():
            _check(present, base_model_of(model))
    elif config is not None:
        config = resolve_peft_config(config, model)
        _check_names(config, model)
        model = _adapted(model, config)
    if is_adapted(model):
        # As full fine-tuning does.
        for value in _logit_parameters(model).values():
            value.requires_grad_(True)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                # Running statistics are not part of the adapter: if they changed, the reference would change, too.
                module.momentum = 0.0
    return model


def _check_names(config: PeftConfig, model: nn.Module) -> None:
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    taken = next((name for name in model.state_dict() if prefix in name), None)
    if taken is not None:
        raise ValueError(
            f"the {type(model).__name__} has weights of its own whose names contain {prefix!r}, such as {taken!r}; "
            "PEFT would train and save them as part of the adapter; rename them, or merge an adapter that is in them"
        )


def _adapted(model: nn.Module, config: PeftConfig) -> nn.Module:
    try:
        with without_peft_warning():
            return get_peft_model(model, config)
    except Exception as error:
        # As the model was, for another attempt.
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                model.set_submodule(name, without_adapter(module))
        raise ValueError(
            f"PEFT cannot put a {type(config).__name__} into the {type(model).__name__}: {error!r}. Modules that "
            "subclass layers of torch often cannot be adapted; choose others by target_modules"
        ) from error


@contextmanager
def without_peft_warning() -> Iterator[None]:
    """Within, wrapping a model by PEFT does not warn of the attribute that PEFT reads and transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def check_adapters(model: nn.Module) -> None:
    """Raise ValueError if `model` has adapters that a run cannot save: several, or one without a PeftModel."""
    if not isinstance(model, PeftModel):
        if has_adapter_layers(model):
            raise ValueError(
                f"the {type(model).__name__} has layers of a PEFT adapter inside, but is not a PeftModel, so that the "
                "adapter could be neither switched off for the reference nor saved on its own; pass the model from "
                "before add_adapter or inject_adapter_in_model, with peft_config or wrapped by get_peft_model"
            )
    elif len(names := list(model.peft_config)) > 1:
        raise ValueError(
            f"the PeftModel has the adapters {', '.join(map(repr, names))}, and a run trains and saves one; remove "
            f"the others, as by model.delete_adapter({names[-1]!r}), or merge them into the base model"
        )


def is_adapted(model: Any) -> bool:
    """Whether `model` has a PEFT adapter."""
    return isinstance(model, PeftModel)


def has_adapter_layers(model: nn.Module) -> bool:
    """Whether `model` has a PEFT adapter, whether or not it is a `PeftModel`."""
    return is_adapted(model) or any(isinstance(module, BaseTunerLayer) for module in model.modules())


def has_quantized_weights(model: nn.Module) -> bool:
    """Whether parameters of `model` are integers, so that they cannot be mixed with those of another model."""
    return any(not value.is_floating_point() for value in model.parameters())


def has_adapter_weights(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether parameters of these names belong to the adapter of `model`, or to a module that it saves."""
    if not isinstance(model, PeftModel):
        return False
    prefix = cast(Any, model.base_model).prefix
    return any(prefix in name or ".modules_to_save." in name for name in names)


def base_model_of(model: nn.Module) -> Any:
    """The dual encoder under an adapter, or `model` itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the model would have without its adapter."""
    if not isinstance(model, PeftModel):
        return model.state_dict()
    prefix = cast(Any, model.base_model).prefix
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in base_model_of(model).state_dict().items()
        if prefix not in name and ".modules_to_save." not in name
    }


def without_adapter(module: nn.Module) -> nn.Module:
    """The module inside an adapter's layer, or `module` itself."""
    while isinstance(inner := getattr(module, "base_layer", getattr(module, "original_module", None)), nn.Module):
        module = inner
    return module


def _is_logit_parameter(name: str) -> bool:
    return name.rpartition(".")[-1] in LOGIT_PARAMETERS


def _logit_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if _is_logit_parameter(name)}


def save_temperature(model: nn.Module, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Add the temperature, from `state` or the model itself, to the adapter that was saved to `folder`.

    It is stored in the adapter's own file, under its name in the model, so that `PeftModel.from_pretrained` loads it.
    PEFT saves an adapter into a folder of its name unless that is "default"; it is moved to `folder`, where the Hub,
    `Trainer` and `load` look for it.
    """
    path, (name,) = Path(folder) / SAFETENSORS_WEIGHTS_NAME, cast(PeftModel, model).peft_config
    if name != "default":
        for part in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
            (path.parent / name / part).replace(path.with_name(part))
        with suppress(OSError):  # files of somebody else
            (path.parent / name).rmdir()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in _logit_parameters(model).items():
        tensors[name] = (value if state is None else state.get(name, value)).detach().cpu().clone()
    with file_in_place_of(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def saved_temperature(model: nn.Module, folder: str | PathLike[str]) -> dict[str, Tensor]:
    """What `save_temperature` has added to the adapter in `folder`, in the shapes that it has in the model."""
    with safe_open(Path(folder) / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        return {name: file.get_tensor(name).reshape(value.shape) for name, value in _logit_parameters(model).items()}


def merge_and_save(model: nn.Module, processor: Any, folder: str | PathLike[str]) -> None:
    """Merge the adapter of a model and save the result with its processor, as a checkpoint like any other.

    The result computes what the adapted model does, which is not changed.

    Raises:
        ValueError: if the model has no adapter.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(f"the {type(model).__name__} has no adapter to merge; save it with save_model()")
    with _merged(model) as (merged, is_quantized):
        save_code_of_towers(merged, folder)
        # transformers cannot revert how it read weights that were quantized already.
        merged.save_pretrained(folder, save_original_format=not is_quantized)
    processor.save_pretrained(folder)
    apply_umask(Path(folder).glob("*.safetensors"))


def merged_copy(model: nn.Module) -> nn.Module:
    """A copy of an adapted model with its adapter merged, a plain model, with the head of a cross-entropy run.

    Raises:
        ValueError: if weights are quantized, so that only PEFT can read them.
    """
    with _merged(model) as (merged, is_quantized):
        if is_quantized:
            raise ValueError(
                f"the {type(model).__name__} has quantized weights, which cannot be mixed; load its base model in "
                "full precision"
            )
        head = getattr(model, HEAD_NAME, None)
        if head is not None and getattr(merged, HEAD_NAME, None) is None:
            # The trained head of a cross-entropy run is a module of the `PeftModel`.
            merged.add_module(HEAD_NAME, copy.deepcopy(head))
        return cast(nn.Module, merged)


@contextmanager
def _merged(model: Any) -> Iterator[tuple[Any, bool]]:
    """A copy of an adapted model with its adapter merged, and whether it has quantized weights."""
    # Not every type of quantized weights can be copied. They are shared with the copy, where PEFT puts others in their
    # place, and set back for types whose merge writes into them.
    quantized = {value: value.data.clone() for value in model.parameters() if not value.is_floating_point()}
    try:
        yield copy.deepcopy(model, {id(value): value for value in quantized}).merge_and_unload(), bool(quantized)
    finally:
        for value, before in quantized.items():
            value.data = before
