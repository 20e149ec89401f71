"""Loading dual encoders and their processors, and the checks that both pass before use."""

import inspect
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor, PreTrainedModel
from transformers.utils import logging

from starft_hf.models.adapters import base_model_of
from starft_hf.models.families import LEGACY_EOS, TEMPERATURES, Family, family_of
from starft_hf.models.heads import HEAD_NAME
from starft_hf.models.modes import evaluation_mode, floating_dtype
from starft_hf.models.own_code import check_classes
from starft_hf.models.sigmoid import BIAS, restore_added_bias
from starft_hf.models.texts import counts_from_padding
from starft_hf.utils.files import local_or_hub
from starft_hf.utils.untrusted import read_json_object


logger = logging.get_logger(__name__)

_CONFIGS = ("config.json", "adapter_config.json")
_POINTER = b"version https://git-lfs"


def load_model(model: str | PathLike[str] | nn.Module, *, trust_remote_code: bool = False) -> nn.Module:
    """`model` itself, or the model of that Hub id or path, in float32 so that small updates are not lost.

    Its code is run if it has its own and `trust_remote_code` allows it. An adapter that lies beside its base
    model is left out.

    Raises:
        FileNotFoundError: if there is nothing at a path, or no such model on the Hub.
        ValueError: if a folder holds no model, or its classes are not known, saying what to do.
    """
    if isinstance(model, nn.Module):
        return model
    model = local_or_hub(model, "model")
    check_folder(Path(model))
    check_config(Path(model))
    check_classes(model, trust_remote_code=trust_remote_code)
    settings: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    settings["output_loading_info"] = True
    if all((Path(model) / name).is_file() for name in _CONFIGS):
        # Transformers would look for it here, and inject it.
        settings["adapter_kwargs"] = {"subfolder": "none"}
    try:
        loaded, found = AutoModel.from_pretrained(model, **settings)
    except (OSError, SafetensorError, UnpicklingError, EOFError, KeyError) as error:
        if Path(model).exists():
            hint = "; its weights are pointers of Git LFS: run git lfs pull there" if _has_pointers(model) else ""
            raise ValueError(f"no model could be loaded from {model!r} ({error}){hint}") from error
        raise FileNotFoundError(not_on_hub(model, error)) from error
    check_complete(loaded, found["missing_keys"], model)
    # Transformers set it itself before 5.24.
    if getattr(loaded.config, "_commit_hash", None) is None and not Path(model).exists():
        loaded.config._commit_hash = cached_commit(str(model))
    if (folder := _folder_of(str(model))) is not None:
        restore_added_bias(loaded, folder)
    return loaded


def check_complete(loaded: nn.Module, missing: Iterable[str], source: str) -> None:
    """Raise ValueError if a checkpoint lacks weights of its model, which would be random, and others in every process.

    A bias that training has added is restored afterwards; positions are no weights.
    """
    lacking = sorted(name for name in missing if not name.endswith((BIAS, "position_ids")))
    if lacking:
        saved = ", ".join(getattr(loaded.config, "architectures", None) or ["another class"])
        raise ValueError(
            f"{source!r} has no {lacking[0]!r}, which a {type(loaded).__name__} needs ({len(lacking)} weights are "
            f"missing and would be random); it was saved as {saved}. Pass a checkpoint of a whole dual encoder"
        )


def _has_pointers(folder: str) -> bool:
    """Whether weights in a folder are the text files that Git LFS has in their places."""
    files = [path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin") and path.is_file()]
    return any(path.open("rb").read(len(_POINTER)) == _POINTER for path in files)


def _folder_of(model: str) -> Path | None:
    """The folder that a model was loaded from, in the cache of the Hub if `model` is an id."""
    if Path(model).exists():
        return Path(model)
    path = try_to_load_from_cache(model, "config.json")
    return Path(path).parent if isinstance(path, str) else None


def check_folder(path: Path) -> None:
    """Raise ValueError if `path` exists and is not the folder of a model."""
    written = "pass a folder that save_model() or save_pretrained() has written, or a Hub id"
    if path.is_file():
        raise ValueError(f"{str(path)!r} is a file, and a model is a folder; {written}")
    if path.is_dir() and not any((path / name).is_file() for name in _CONFIGS):
        raise ValueError(f"{str(path)!r} is not a model: it has neither {' nor '.join(_CONFIGS)}; {written}")


def not_on_hub(model: str, error: Exception) -> str:
    """The message for a model that is neither a folder nor, by `error`, to be had from the Hub."""
    return f"there is no folder {model!r} here, and no such model could be loaded from the Hub ({error})"


def check_config(folder: Path) -> None:
    """Raise ValueError if `folder` has a configuration, perhaps somebody else's, that transformers cannot survive."""
    for name in _CONFIGS:
        if (folder / name).is_file():
            try:
                read_json_object(folder / name, {})
            except ValueError as error:
                raise ValueError(f"{str(folder / name)!r} cannot be read: {error}") from error


def cached_commit(model_id: str, *, unambiguous: bool = False) -> str | None:
    """The commit of a Hub model's main branch when it was last downloaded; None if it is unknown.

    `unambiguous` gives None if another commit of the model was downloaded as well.
    """
    try:
        path = try_to_load_from_cache(model_id, "config.json")
    except HFValidationError:
        return None
    if not isinstance(path, str):
        return None
    commit = Path(path).parent
    return None if unambiguous and len(list(commit.parent.iterdir())) > 1 else commit.name


def load_processor(model: nn.Module, processor: Any = None, *, trust_remote_code: bool = False) -> Any:
    """`processor` itself, or the one of the checkpoint that `model` was loaded from; ValueError without one."""
    if processor is not None and not isinstance(processor, str):
        return processor
    source = processor or getattr(getattr(model, "config", None), "_name_or_path", "")
    advice = "pass processing_class=AutoProcessor.from_pretrained(...) of the checkpoint the model comes from"
    if not source:
        raise ValueError(f"the model was not loaded from a checkpoint, so its processor is unknown; {advice}")
    source = local_or_hub(source, "processing_class") if processor else source
    try:
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            save = f"AutoProcessor.from_pretrained(...).save_pretrained({str(source)!r})"
            advice = f"save that of the checkpoint the model comes from there: {save}; or {advice}"
        raise ValueError(f"no processor could be loaded from {source!r} ({error}); {advice}") from error


def check_dual_encoder(model: nn.Module) -> tuple[str, ...]:
    """The names of the forward's arguments; ValueError if `model` is not a dual encoder, saying what is missing."""
    model = base_model_of(model)
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled already; pass the model itself, and set torch_compile=True")
    needed = ("pixel_values", "input_ids")
    arguments = _arguments_of(model, needed)
    missing = [f"an argument {name!r} of its forward" for name in needed if name not in arguments]
    if not isinstance(getattr(model, family_of(model).temperature, None), Tensor):
        missing.append(f"a temperature (a parameter {' or '.join(f'`{name}`' for name in TEMPERATURES)})")
    if isinstance(model, PreTrainedModel):
        towers = ("text_config", "vision_config")
        missing += [f"a `{tower}` in its configuration" for tower in towers if not hasattr(model.config, tower)]
    else:
        missing.append("a configuration (it is not a transformers PreTrainedModel)")
    if missing:
        raise ValueError(
            f"{type(model).__name__} is not a dual encoder: missing {', '.join(missing)}. StarFT needs a model that "
            "embeds images and texts in one space, such as CLIPModel, SiglipModel or AlignModel."
        )
    _warn_of_own_class(cast(PreTrainedModel, model))
    return arguments


def _warn_of_own_class(model: PreTrainedModel) -> None:
    """Warn that a saved `model` will be loaded without the weights that its class, a subclass, adds."""
    own = type(model)
    built = AutoModel._model_mapping.get(type(model.config), None)
    of_libraries = own.__module__.startswith(("transformers.", "torch."))
    if of_libraries or not isinstance(built, type) or issubclass(built, own) or model._auto_class is not None:
        return
    with torch.device("meta"):
        known = built(model.config).state_dict()
    more = [name for name in model.state_dict() if name not in known and not name.startswith((BIAS, HEAD_NAME))]
    if more:
        logger.warning_once(
            f"The {own.__name__} has weights, such as {more[0]!r}, that a {built.__name__} does not have, and a "
            "folder with this configuration is loaded as one. Register your class wherever it is to be loaded: "
            f"AutoModel.register(type(model.config), {own.__name__}, exist_ok=True)."
        )


def _arguments_of(model: nn.Module, needed: Sequence[str]) -> tuple[str, ...]:
    """The names of the forward's arguments; of one that passes on what it gets, those of the class it is based on."""
    own = inspect.signature(model.forward).parameters
    for base in type(model).__mro__:
        if set(needed) <= own.keys() or not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in own.values()):
            break
        own = inspect.signature(base.forward).parameters if hasattr(base, "forward") else own
    return tuple(own)


def check_processor(model: nn.Module, processor: Any) -> tuple[Any, Any]:
    """The tokenizer and the image processor of `processor`; ValueError if it is incomplete or of another model."""
    tokenizer, image_processor = getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)
    if tokenizer is None or image_processor is None:
        missing = "tokenizer" if tokenizer is None else "image processor"
        raise ValueError(
            f"processing_class is a {type(processor).__name__}, which has no {missing} of its own; pass the model's "
            "whole processor, AutoProcessor.from_pretrained(...)"
        )
    wrong = []
    family = family_of(model)
    _check_sides(tokenizer, family)
    config: Any = model.config
    if len(tokenizer) > config.text_config.vocab_size:
        wrong.append(f"its tokenizer has {len(tokenizer)} entries, the model {config.text_config.vocab_size}")
    eos = getattr(config.text_config, "eos_token_id", None)
    end = tokenizer.eos_token_id
    if family.has_legacy_end and eos == LEGACY_EOS:
        if max(tokenizer("a")["input_ids"]) != end:
            wrong.append(f"its tokenizer ends texts with token {end}, the model pools the one with the highest id")
    elif family.checks_end_token and eos not in (None, end):
        wrong.append(f"its tokenizer ends texts with token {end}, the model expects {eos}")
    padding = counts_from_padding(base_model_of(model))
    if padding is not None and tokenizer.pad_token_id != padding:
        wrong.append(f"its tokenizer pads with token {tokenizer.pad_token_id}, the model with {padding}")
    blank, wide = (
        image_processor(images=[Image.new("RGB", (width, 64))], return_tensors="pt")["pixel_values"]
        for width in (64, 96)
    )
    # One that does not resize takes images as they are, which may all have one size.
    if getattr(image_processor, "do_resize", True) and blank.ndim == 4 and blank.shape != wide.shape:
        shapes = f"{tuple(blank.shape[-2:])} and {tuple(wide.shape[-2:])}"
        wrong.append(f"its image processor gives images of different sizes, {shapes}: set do_center_crop=True")
    found, size = tuple(blank.shape[-2:]), getattr(config.vision_config, "image_size", None)
    wanted = (size, size) if isinstance(size, int) else size and tuple(size)
    # SigLIP 2's processor gives sequences of patches, `(N, patches, values)`. Convolutions take images of any size, as
    # do towers that interpolate their positions.
    differs = blank.ndim == 4 and wanted is not None and found != wanted
    if not wrong and (family.any_towers or differs) and (error := _error_of_forward(model, tokenizer, blank)):
        if differs:
            wrong.append(f"its image processor gives images of {found} pixels, the model takes {size} ({error!r})")
        else:
            raise ValueError(
                f"the {type(base_model_of(model)).__name__} cannot embed a blank image and a text: {error!r}. Both "
                "towers must return an output with the pooled embeddings, `(N, hidden_size)`, as `pooler_output`."
            ) from error
    if wrong:
        raise ValueError(
            f"the {type(processor).__name__} does not belong to the {type(model).__name__}: {'; '.join(wrong)}. "
            "Load both from one checkpoint."
        )
    return tokenizer, image_processor


def _error_of_forward(model: nn.Module, tokenizer: Any, pixels: Tensor) -> Exception | None:
    """What `model` raises when it is to embed an image and a short text; None if it embeds them."""
    device = next(model.parameters()).device
    texts = {"input_ids": tokenizer(["a"], return_tensors="pt")["input_ids"].to(device)}
    try:
        with evaluation_mode(model):
            model(pixel_values=pixels.to(device, floating_dtype(model)), **texts)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return error
    return None


def _check_sides(tokenizer: Any, family: Family) -> None:
    """Check that a tokenizer pads and truncates at the end of texts."""
    # A tower whose texts all have one length was trained with the padding of its tokenizer, on whichever side.
    sides = ("truncation_side",) if family.fixed_length else ("padding_side", "truncation_side")
    for side in sides:
        if getattr(tokenizer, side, "right") != "right":
            harm = (
                "the text tower counts positions from the left, so the embedding of a text would depend on the others "
                "in its batch"
                if side == "padding_side"
                else "captions that are too long would lose their beginning"
            )
            raise ValueError(
                f"the tokenizer has {side}={getattr(tokenizer, side)!r}: {harm}; set "
                f"processor.tokenizer.{side} = 'right'"
            )
