"""The dual encoder: one forward for every family, and the parts of a batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.utils import ModelOutput

from starft_hf.models.families import family_of
from starft_hf.models.fsdp import full_tensor
from starft_hf.models.gradient_cache import embeds_apart, forward_in_chunks
from starft_hf.models.heads import head_logits
from starft_hf.models.loading import check_dual_encoder, check_processor
from starft_hf.models.modes import floating_dtype, unwrapped
from starft_hf.models.pixels import ByteValues, byte_values
from starft_hf.models.prefix_sharing import POOL_PLACES, POOL_ROWS, pooled_at
from starft_hf.models.sigmoid import BIAS
from starft_hf.models.texts import TEXT_ARGUMENTS, TextEncoding
from starft_hf.models.towers import pool_towers
from starft_hf.objectives.losses import as_float32_or_wider, unit_rows


_TEXT_KEYS = (*TEXT_ARGUMENTS, POOL_ROWS, POOL_PLACES)


@dataclass
class DualOutput(ModelOutput):
    """The outputs of one forward: unit rows, the exponentiated temperature, the sigmoid bias, the head's logits.

    Parallel wrappers only handle parameters that take part in a forward, so those that the losses need are included.
    """

    image_embeds: Tensor = None  # type: ignore[assignment]  # (N, D)
    text_embeds: Tensor = None  # type: ignore[assignment]  # (M, D)
    logit_scale: Tensor = None  # type: ignore[assignment]
    logit_bias: Tensor | None = None
    head_logits: Tensor | None = None  # (N, classes)


@dataclass(frozen=True)
class DualEncoder:
    """The spec of a dual encoder: how to prepare its inputs and read its outputs. Calls take the model itself."""

    encode_texts: TextEncoding
    image_processor: Any
    forward_arguments: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, processor: Any, *, packed: bool = True) -> "DualEncoder":
        """The spec of `model`; ValueError if it is not a dual encoder or the processor does not belong to it.

        `packed` lets texts share the computation of their prefixes, where the text tower allows it.
        """
        arguments = check_dual_encoder(model)
        pool_towers(model)
        tokenizer, image_processor = check_processor(model, processor)
        return cls(TextEncoding(model, tokenizer, arguments, packed=packed), image_processor, arguments)

    @cached_property
    def byte_values(self) -> ByteValues | None:
        """What the image processor makes of bytes; None if images reach the forward as it returns them only."""
        return byte_values(self.image_processor)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Bytes `(N, 3, H, W)` as the image processor rescales and normalizes them; floats are normalized already."""
        if pixels.dtype != torch.uint8:
            return pixels
        if self.byte_values is None:
            raise TypeError(
                f"the images of a batch are bytes, and {type(self.image_processor).__name__} is not known to rescale "
                "and normalize every byte by itself; collate what the image processor returns"
            )
        return self.byte_values(pixels)

    def forward(self, model: nn.Module, batch: Mapping[str, Any], head: nn.Linear | None = None) -> DualOutput:
        """One forward of images, texts and the linear head, if given; other keys of `batch` are ignored.

        Images that are bytes are rescaled and normalized here, on their device. Within
        `forward_in_chunks(alone=...)` there are images or texts alone, and no embeddings of the others.
        """
        dtype = floating_dtype(model)
        if "pixel_values" in batch:
            batch = {**batch, "pixel_values": self.normalized(batch["pixel_values"])}
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in batch.items()
            if name in self.forward_arguments and isinstance(value, Tensor)
        }
        inner = unwrapped(model)

        def collect(module: nn.Module, args: Any, outputs: Any) -> DualOutput:
            images, texts = (
                cast(Tensor, None if rows is None else unit_rows(rows))
                for rows in (outputs.image_embeds, outputs.text_embeds)
            )
            return DualOutput(
                image_embeds=images,
                text_embeds=texts,
                logit_scale=logit_scale_of(module),
                logit_bias=logit_bias_of(module),
                head_logits=None if head is None else head_logits(head, images),
            )

        # Prepended, so that it runs before the hook of FSDP that frees the gathered parameters.
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

        The forward is what parallel wrappers hook. Images are embedded beside a short text, and texts beside a blank
        image where a model cannot embed them alone.
        """
        device = next(model.parameters()).device
        if images is not None:
            return self.forward(model, {**images, **_to(self.encode_texts(["a"]), device)}).image_embeds
        encoded = texts if isinstance(texts, Mapping) else self.encode_texts(texts)
        inner = unwrapped(model)
        if not embeds_apart(inner):
            return self.forward(model, _to({**self.blank_image(), **encoded}, device)).text_embeds
        with forward_in_chunks(inner, None, alone="texts"):
            return self.forward(model, _to(encoded, device)).text_embeds

    def blank_image(self) -> dict[str, Tensor]:
        """The tensors of one black image."""
        return dict(self.image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt"))


def logit_scale_of(model: nn.Module) -> Tensor:
    """The inverse temperature of a dual encoder, a scalar in float32 or wider, with its gradient."""
    family = family_of(model)
    value = _scalar(getattr(model, family.temperature))
    return value.exp() if family.stores_log else value.reciprocal()


@torch.no_grad()
def limit_logit_scale(model: nn.Module, largest: float) -> None:
    """Lower the inverse temperature of a dual encoder to `largest` where it is above, in place, also if sharded."""
    family = family_of(model)
    parameter: Any = getattr(model, family.temperature)
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    if family.stores_log:
        local.clamp_(max=math.log(largest))
    else:
        local.clamp_(min=1 / largest)


def logit_bias_of(model: nn.Module) -> Tensor | None:
    """What a sigmoid model, or one with an added bias, adds to its scaled similarities, a scalar; None for others."""
    parameter = getattr(model, family_of(model).logit_bias or BIAS, None)
    return _scalar(parameter) if isinstance(parameter, Tensor) else None


def _scalar(parameter: Tensor) -> Tensor:
    return as_float32_or_wider(full_tensor(parameter)).reshape(())


def batch_images(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without its texts."""
    return {name: value for name, value in batch.items() if name not in _TEXT_KEYS}


def batch_texts(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Only the texts of a batch."""
    return {name: value for name, value in batch.items() if name in _TEXT_KEYS}


def _to(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}
