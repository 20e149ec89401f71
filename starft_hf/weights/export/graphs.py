"""The towers of a dual encoder, traced into graphs of ONNX."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from starft_hf.models.encoder import DualEncoder
from starft_hf.models.families import family_of
from starft_hf.models.modes import evaluation_mode
from starft_hf.weights.export.packages import quiet


# Runtimes of the last years read it, and the exporter need not convert anything to it.
_OPSET = 18

PIXELS = "pixel_values"
BATCH, SEQUENCE = "batch", "sequence"


@dataclass(frozen=True)
class Tower:
    """A tower to export.

    Attributes:
        file: the name of its file, without the ending.
        output: its embeddings, as the forward of the model calls them.
        inputs: what it is traced with, of two images or texts.
        other_tower: the module of the model that embeds what is not exported.
        other: what the forward gets for it.
        dynamic: of each input, the names of the dimensions that may differ.
    """

    file: str
    output: str
    inputs: Mapping[str, Tensor]
    other_tower: str
    other: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]


def image_tower(model: nn.Module, encoder: DualEncoder) -> Tower:
    """The tower that embeds images."""
    pixels = encoder.blank_image()[PIXELS]
    example = {PIXELS: torch.rand(2, *pixels.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1}
    other = family_of(model).text_tower, _texts(encoder, ["a"])
    return Tower("image_encoder", "image_embeds", example, *other, {PIXELS: {0: BATCH}})


def text_tower(model: nn.Module, encoder: DualEncoder) -> Tower:
    """The tower that embeds texts, of any length if it does not need padding to a fixed one."""
    texts = _texts(encoder, ["a photo of a cat.", "a cat"])
    shape = {0: BATCH} if encoder.encode_texts.fixed_length else {0: BATCH, 1: SEQUENCE}
    other = family_of(model).vision_tower, encoder.blank_image()
    return Tower("text_encoder", "text_embeds", texts, *other, dict.fromkeys(texts, shape))


def _texts(encoder: DualEncoder, texts: list[str]) -> dict[str, Tensor]:
    encoded = encoder.encode_texts(texts)
    # Of a single text, token types and positions are what the tower takes without any.
    return {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}


class _Traced(nn.Module):
    """The embeddings of one tower, through the forward of the whole model, as a function of its inputs."""

    def __init__(self, model: nn.Module, tower: Tower):
        super().__init__()
        self.model, self.output, self.other = model, tower.output, dict(tower.other)

    def forward(
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        own = {PIXELS: pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        given = {name: value for name, value in own.items() if value is not None}
        embeds: Tensor = getattr(self.model(**self.other, **given), self.output)
        return embeds


def trace(model: nn.Module, tower: Tower, path: Path) -> None:
    """Write the graph of a tower of a model in float32 to `path`, and its weights beside it.

    Raises:
        ValueError: if the exporter of PyTorch cannot trace it.
    """
    try:
        with quiet(), _constant(model, tower):
            try:
                program = _program(model, tower)
            except Exception:
                # The fused attention of some towers (Swin) cannot be decomposed.
                with _eager_attention(model):
                    program = _program(model, tower)
            program.save(path, external_data=True)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            f"PyTorch {torch.__version__} cannot export the {tower.file.replace('_', ' ')} of the "
            f"{type(model).__name__}: {type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        ) from error


def _program(model: nn.Module, tower: Tower) -> Any:
    return torch.onnx.export(
        _Traced(model, tower).eval(),
        (),
        kwargs=dict(tower.inputs),
        input_names=list(tower.inputs),
        output_names=["embeds"],
        dynamic_shapes={name: dict(axes) for name, axes in tower.dynamic.items()},
        opset_version=_OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )


@contextlib.contextmanager
def _eager_attention(model: nn.Module) -> Iterator[None]:
    """Within, attention is computed as written."""
    configs: list[Any] = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    # Setting that of a whole sets that of its parts.
    before = [(config, config._attn_implementation) for config in configs]
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@contextlib.contextmanager
def _constant(model: nn.Module, tower: Tower) -> Iterator[None]:
    """Within, the tower that is not exported returns what it made of its inputs, so that it need not be traced."""
    other = getattr(model, tower.other_tower, None)
    made: list[Any] = []
    if isinstance(other, nn.Module):
        hook = other.register_forward_hook(lambda module, args, outputs: made.append(copy.copy(outputs)))
        try:
            with evaluation_mode(model):
                model(**tower.inputs, **tower.other)
        finally:
            hook.remove()
    if not made:
        yield
        return
    # Models change what their towers return.
    other.forward = lambda *args, **kwargs: copy.copy(made[0])  # type: ignore[union-attr]
    try:
        yield
    finally:
        del other.forward  # type: ignore[union-attr]
