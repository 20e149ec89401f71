"""Dual encoders: what StarFT asks of a model and its processor, and the differences between the families."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel, AutoProcessor, PreTrainedModel
from transformers.utils import ModelOutput, logging

from starft_hf.models.adapters import base_model_of
from starft_hf.models.prefix_sharing import POOL_PLACES, POOL_ROWS, pooled_at
from starft_hf.models.texts import TextEncoding
from starft_hf.objectives.losses import as_float32_or_wider, similarity_logits


logger = logging.get_logger(__name__)

# The arguments of a forward that belong to its texts; the others belong to its images.
TEXT_ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_TEXT_KEYS = (*TEXT_ARGUMENTS, POOL_ROWS, POOL_PLACES)

# Where a family keeps its temperature, and whether it is stored as log(1 / temperature) or as the temperature.
_TEMPERATURES = (("logit_scale", True), ("temperature", False))


@dataclass
class DualOutput(ModelOutput):
    """What one forward gives, with everything the losses need of the model's parameters.

    Parallel wrappers see to the parameters that take part in a forward; hence the temperature and the head are here.

    Attributes:
        image_embeds: unit rows, `(N, D)`.
        text_embeds: unit rows, `(M, D)`.
        logit_scale: the inverse temperature, a scalar, already exponentiated.
        logit_bias: what sigmoid models add to the scaled similarities, a scalar.
        head_logits: of a linear head on the image embeddings, `(N, classes)`.
    """

    image_embeds: Tensor = None  # type: ignore[assignment]
    text_embeds: Tensor = None  # type: ignore[assignment]
    logit_scale: Tensor = None  # type: ignore[assignment]
    logit_bias: Tensor | None = None
    head_logits: Tensor | None = None


@dataclass(frozen=True)
class DualEncoder:
    """A dual encoder's conventions. It holds no weights: the model is passed to every call.

    Attributes:
        encode_texts: turns texts into arguments of the forward.
        image_processor: the model's image processor.
        forward_arguments: the names the forward takes.
    """

    encode_texts: TextEncoding
    image_processor: Any
    forward_arguments: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, processor: Any, *, packed: bool = True) -> "DualEncoder":
        """The conventions of `model`.

        Args:
            model: the dual encoder.
            processor: its processor.
            packed: whether texts may share the computation of what they begin with, where the text tower allows it.

        Raises:
            ValueError: if the model is no dual encoder, or the processor does not belong to it.
        """
        arguments = check_dual_encoder(model)
        tokenizer, image_processor = check_processor(model, processor)
        return cls(TextEncoding.of(model, tokenizer, arguments, packed=packed), image_processor, arguments)

    def forward(self, model: nn.Module, batch: Mapping[str, Any], head: nn.Linear | None = None) -> DualOutput:
        """One forward of images and texts, and of a linear head if there is one; `batch` may hold more than that."""
        dtype = floating_dtype(model)
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in batch.items()
            if name in self.forward_arguments and isinstance(value, Tensor)
        }
        inner = unwrapped(model)

        def collect(module: nn.Module, args: Any, outputs: Any) -> DualOutput:
            images = unit_rows(outputs.image_embeds)
            return DualOutput(
                image_embeds=images,
                text_embeds=unit_rows(outputs.text_embeds),
                logit_scale=logit_scale_of(module),
                logit_bias=logit_bias_of(module),
                head_logits=None if head is None else head_logits(head, images),
            )

        # Before the hooks of FSDP, which take the parameters away again.
        hook = inner.register_forward_hook(collect, prepend=True)
        try:
            with pooled_at(inner, batch):
                return model(**inputs)
        finally:
            hook.remove()

    def encode(
        self,
        model: nn.Module,
        *,
        images: Mapping[str, Any] | None = None,
        texts: Sequence[str] | Mapping[str, Any] = (),
    ) -> Tensor:
        """Unit rows of images (tensors of the image processor) or of texts (strings or tensors), through the forward.

        The other side is filled with a blank, because the forward is what parallel wrappers hook.
        """
        device = next(model.parameters()).device
        if images is not None:
            return self.forward(model, {**images, **_to(self.encode_texts(["a"]), device)}).image_embeds
        encoded = texts if isinstance(texts, Mapping) else self.encode_texts(texts)
        return self.forward(model, _to({**self.blank_image(), **encoded}, device)).text_embeds

    def blank_image(self) -> dict[str, Tensor]:
        """The tensors of one black image."""
        return dict(self.image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt"))


def load_model(model: str | PathLike[str] | nn.Module) -> nn.Module:
    """`model` itself, or the model of that Hub id or path, in float32 so that small updates are not lost."""
    if isinstance(model, nn.Module):
        return model
    loaded = AutoModel.from_pretrained(model, dtype=torch.float32)
    # Transformers said so itself before 5.24.
    if getattr(loaded.config, "_commit_hash", None) is None and not Path(model).exists():
        loaded.config._commit_hash = cached_commit(str(model))
    return loaded


def cached_commit(model_id: str, *, unambiguous: bool = False) -> str | None:
    """The commit of the main branch of a model of the Hub as it was last downloaded; None where it is not known.

    Args:
        model_id: of the model.
        unambiguous: answer only where no other commit of the model was ever downloaded.
    """
    try:
        path = try_to_load_from_cache(model_id, "config.json")
    except HFValidationError:
        return None
    if not isinstance(path, str):
        return None
    commit = Path(path).parent
    return None if unambiguous and len(list(commit.parent.iterdir())) > 1 else commit.name


def load_processor(model: nn.Module, processor: Any = None) -> Any:
    """`processor` itself, or the one that stands where `model` was loaded from.

    Raises:
        ValueError: if there is none there.
    """
    if processor is not None and not isinstance(processor, str):
        return processor
    source = processor or getattr(getattr(model, "config", None), "_name_or_path", "")
    advice = "pass processing_class=AutoProcessor.from_pretrained(...) of the checkpoint the model comes from"
    if not source:
        raise ValueError(f"the model was not loaded from anywhere, so its processor is unknown; {advice}")
    try:
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"no processor could be loaded from {source!r} ({error}); {advice}") from error


def check_dual_encoder(model: nn.Module) -> tuple[str, ...]:
    """The names of the arguments of the forward of `model`, a dual encoder.

    Raises:
        ValueError: if it is not one, saying what is missing.
    """
    model = base_model_of(model)
    arguments = tuple(inspect.signature(model.forward).parameters)
    missing = [
        f"an argument {name!r} of its forward" for name in ("pixel_values", "input_ids") if name not in arguments
    ]
    if not any(isinstance(getattr(model, name, None), Tensor) for name, _ in _TEMPERATURES):
        missing.append("a temperature (a parameter `logit_scale` or `temperature`)")
    if not isinstance(model, PreTrainedModel):
        missing.append("a configuration (it is no transformers PreTrainedModel)")
    for tower in ("text_config", "vision_config"):
        if isinstance(model, PreTrainedModel) and not hasattr(model.config, tower):
            missing.append(f"a `{tower}` in its configuration")
    if missing:
        raise ValueError(
            f"{type(model).__name__} is no dual encoder: it lacks {', '.join(missing)}. StarFT needs a model that "
            "embeds images and texts in one space, such as CLIPModel, SiglipModel or AlignModel."
        )
    return arguments


def check_processor(model: nn.Module, processor: Any) -> tuple[Any, Any]:
    """The tokenizer and the image processor of `processor`.

    Raises:
        ValueError: if it lacks one, or if they were made for another model.
    """
    tokenizer, image_processor = getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)
    if tokenizer is None or image_processor is None:
        raise ValueError(
            f"processing_class is a {type(processor).__name__}, which has "
            f"{'no tokenizer' if tokenizer is None else 'no image processor'}; pass the model's whole processor, "
            "AutoProcessor.from_pretrained(...)"
        )
    wrong = []
    text_config, vision_config = _config(model).text_config, _config(model).vision_config
    model_type = _config(model).model_type
    if len(tokenizer) > text_config.vocab_size:
        wrong.append(f"its tokenizer has {len(tokenizer)} entries, the model {text_config.vocab_size}")
    eos = getattr(text_config, "eos_token_id", None)
    # CLIP's text tower pools at the end token. (2 is its legacy configuration, which pools at the highest id.)
    if model_type == "clip" and eos not in (2, None, tokenizer.eos_token_id):
        wrong.append(f"its tokenizer ends texts with token {tokenizer.eos_token_id}, the model expects {eos}")
    blank = image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
    image_size = getattr(vision_config, "image_size", None)
    if blank.ndim == 4 and isinstance(image_size, int) and model_type != "align":
        found = tuple(blank.shape[-2:])
        if found != (image_size, image_size):
            wrong.append(f"its image processor gives images of {found} pixels, the model takes {image_size}")
    if wrong:
        raise ValueError(
            f"the {type(processor).__name__} does not belong to the {type(model).__name__}: {'; '.join(wrong)}. "
            "Load both from one checkpoint."
        )
    return tokenizer, image_processor


def logit_scale_of(model: nn.Module) -> Tensor:
    """The inverse temperature of a dual encoder, a scalar in float32 or wider, with its gradient."""
    for name, is_log in _TEMPERATURES:
        parameter = getattr(model, name, None)
        if isinstance(parameter, Tensor):
            value = as_float32_or_wider(whole(parameter)).reshape(())
            return value.exp() if is_log else value.reciprocal()
    raise ValueError(f"{type(model).__name__} has neither a `logit_scale` nor a `temperature`")


def logit_bias_of(model: nn.Module) -> Tensor | None:
    """What a sigmoid model adds to its scaled similarities, a scalar, or None for models trained with softmax."""
    parameter = getattr(model, "logit_bias", None)
    return as_float32_or_wider(whole(parameter)).reshape(()) if isinstance(parameter, Tensor) else None


def head_logits(head: nn.Linear, image_embeds: Tensor) -> Tensor:
    """Logits `(N, classes)` of a linear head on unit image embeddings, in float32 or wider."""
    logits = similarity_logits(image_embeds, whole(head.weight), 1.0)
    return logits if head.bias is None else logits + as_float32_or_wider(whole(head.bias))


def whole(tensor: Tensor) -> Tensor:
    """`tensor` itself, or all of it where FSDP has left this process a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def batch_images(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without its texts."""
    return {name: value for name, value in batch.items() if name not in _TEXT_KEYS}


def batch_texts(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a batch alone."""
    return {name: value for name, value in batch.items() if name in _TEXT_KEYS}


def unit_rows(embeds: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 or wider. Not every family's forward does so."""
    return F.normalize(as_float32_or_wider(embeds), dim=-1)


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's floating-point parameters."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether rows of a batch influence each other inside the model in training mode, through batch statistics."""
    return any(
        isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats for module in model.modules()
    )


def differs_in_training(model: nn.Module) -> bool:
    """Whether the model computes something else in training mode than in eval mode: dropout, batch statistics."""
    if has_batch_statistics(model):
        return True
    for module in model.modules():
        # Attention keeps its rate as a number, under one of these names.
        rates = [module.p] if isinstance(module, nn.Dropout) else [vars(module).get(name) for name in _DROPOUT_RATES]
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return True
    return False


_DROPOUT_RATES = ("dropout", "attention_dropout")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; on leaving, every module's mode is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def unwrapped(model: nn.Module) -> Any:
    """The model inside a parallel wrapper."""
    for attribute in ("_orig_mod", "module"):
        while isinstance(inner := vars(model).get("_modules", {}).get(attribute), nn.Module):
            model = inner
    return model


def _config(model: nn.Module) -> Any:
    return model.config


def _to(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}
