"""Models whose classes transformers does not have: the code that comes with them is run only if that is allowed."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from starft_hf.models.families import FAMILIES, Family, family_of


def check_classes(source: str, *, trust_remote_code: bool) -> None:
    """Check that the classes of a model and of its towers are known, before it is loaded.

    With `trust_remote_code`, those of towers that have code of their own are registered, which transformers does for
    the whole model only.

    Raises:
        ValueError: if a class is not known, and its code is missing or may not be run.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except OSError:
        return  # of a folder without a configuration, transformers says more
    for part, content in _unknown_parts(config):
        code = content.get("auto_map") or {}
        names = ", ".join(sorted(set(map(str, code.values()))))
        kind = f"the {part} in {source!r} is of the type {content['model_type']!r}, which transformers does not have"
        if not {"AutoConfig", "AutoModel"} <= code.keys():
            raise ValueError(
                f"{kind}, and no code comes with it. Import the module that registers its classes, by "
                "AutoConfig.register and AutoModel.register, before loading it; or pass the loaded model"
            )
        if not trust_remote_code:
            raise ValueError(
                f"{kind}, and its code ({names}) is not run unless you allow "
                "it. Read it, and if you trust it, pass trust_remote_code=True (to StarFTConfig for training, to load "
                "or evaluate_zero_shot; --trust_remote_code on the command line), or pass the loaded model"
            )
        if part != "model":
            classes = [get_class_from_dynamic_module(code[name], source) for name in ("AutoConfig", "AutoModel")]
            AutoConfig.register(content["model_type"], classes[0], exist_ok=True)
            AutoModel.register(*classes, exist_ok=True)
            for made, name in zip(classes, ("AutoConfig", "AutoModel"), strict=True):
                made.register_for_auto_class(name)


def classes_are_known(config: dict[str, Any]) -> bool:
    """Whether transformers, with what is registered, has the classes that the content of a config.json names."""
    return not list(_unknown_parts(config))


def _unknown_parts(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    parts: dict[str, Any] = {"model": config}
    family = FAMILIES.get(str(config.get("model_type")), Family())
    if family.any_towers:
        parts |= {family.vision_tower: config.get("vision_config"), family.text_tower: config.get("text_config")}
    for part, content in parts.items():
        kind = content.get("model_type") if isinstance(content, dict) else None
        if isinstance(kind, str) and kind not in CONFIG_MAPPING:
            yield part, content


def save_code_of_towers(model: nn.Module, folder: str | PathLike[str]) -> None:
    """Copy the code of towers that have their own into the folder where `model` is to be saved.

    That is of classes with `register_for_auto_class`. Their part of the configuration names it then.
    """
    family = family_of(model)
    for name in (family.vision_tower, family.text_tower) if family.any_towers else ():
        tower: Any = getattr(model, name, None)
        for part in (tower, getattr(tower, "config", None)):
            if getattr(part, "_auto_class", None) is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
                custom_object_save(part, folder, config=tower.config)
