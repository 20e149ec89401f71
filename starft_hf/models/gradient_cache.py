"""Gradient caching (arXiv 2101.06983): the model runs chunk by chunk, the losses see the whole batch.

Contrastive and alignment losses compare every row with every other, so gradients cannot be accumulated over smaller
batches. The embeddings, however, are computed row by row. A first pass over the chunks keeps nothing but their
embeddings; in the backward pass, each chunk is computed again, one at a time, and back-propagated. Losses and
gradients are those of the whole batch. torch's checkpointing does the work: it replays generators and autocast, and
parallel wrappers see a single backward pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from starft_hf.models.texts import TEXT_ARGUMENTS
from starft_hf.objectives.losses import unit_rows
from starft_hf.utils.collectives import world_size


@dataclass
class ChunkedOutput(ModelOutput):
    """What the forward returns within `forward_in_chunks`: unit rows, `(N, D)` and `(M, D)`, or one of the two."""

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


@contextmanager
def forward_in_chunks(
    model: nn.Module,
    chunk_size: int | None,
    *,
    alone: Literal["images", "texts"] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[None]:
    """Within, the forward of `model` computes the rows of images and texts a chunk at a time.

    The forward inside a parallel wrapper is replaced, so that the wrapper still sees one forward and one backward.

    Args:
        model: a dual encoder, unwrapped.
        chunk_size: images per chunk; None computes all at once.
        alone: what there is, with None in place of the rows of the other; for models that `embeds_apart`. Texts alone
            are computed at once.
        autocast: of the forward, as the one that is replaced has it by Accelerate.
    """
    if chunk_size is None and alone is None:
        yield
        return
    own, towers = model.__dict__.get("forward"), _towers_of(model)

    def forward(**inputs: Any) -> ChunkedOutput:
        with autocast():
            return _forward(towers, chunk_size, alone, inputs)

    model.forward = forward
    try:
        yield
    finally:
        if own is None:
            del model.__dict__["forward"]
        else:
            model.forward = own


def embeds_apart(model: nn.Module) -> bool:
    """Whether a dual encoder can embed images without texts, and texts without images."""
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


# From the arguments of a chunk to its embeddings.
Tower = Callable[..., tuple[Tensor, ...]]


def _towers_of(model: nn.Module) -> tuple[Tower, Tower] | Tower:
    """The functions that embed images and texts, or one that embeds both, for models that have no separate ones."""
    if not embeds_apart(model):
        forward = model.forward

        def both(**inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = forward(**inputs)
            return outputs.image_embeds, outputs.text_embeds

        return both
    features: Any = model
    return (
        lambda **inputs: (features.get_image_features(**inputs).pooler_output,),
        lambda **inputs: (features.get_text_features(**inputs).pooler_output,),
    )


def _forward(
    towers: tuple[Tower, Tower] | Tower, chunk_size: int | None, alone: str | None, inputs: Mapping[str, Any]
) -> ChunkedOutput:
    images = {name: value for name, value in inputs.items() if name not in TEXT_ARGUMENTS}
    texts = {name: value for name, value in inputs.items() if name in TEXT_ARGUMENTS}
    if alone == "texts":
        assert isinstance(towers, tuple)
        return ChunkedOutput(text_embeds=unit_rows(towers[1](**texts)[0]))
    if chunk_size is None:
        assert isinstance(towers, tuple)
        return ChunkedOutput(unit_rows(towers[0](**images)[0]))
    num_chunks = -(-_rows(images) // chunk_size)
    image_chunks, text_chunks = _split(images, num_chunks), _split(texts, num_chunks) if texts else []
    if isinstance(towers, tuple):
        # One tower at a time, so that activations of both never exist together. Texts first, because autograd goes
        # backwards: images, whose activations are larger, are then computed again before the text tower has gradients.
        # FSDP waits for all processes in every forward, so all must make as many, however few texts are distinct.
        text_chunks = _filled(text_chunks, num_chunks) if texts and world_size() > 1 else text_chunks
        text_embeds = [_forward_chunk(towers[1], chunk)[0] for chunk in text_chunks]
        image_embeds = [_forward_chunk(towers[0], chunk)[0] for chunk in image_chunks]
    else:
        text_chunks = _filled(text_chunks, num_chunks)
        pairs = [
            _forward_chunk(towers, {**image, **text}) for image, text in zip(image_chunks, text_chunks, strict=True)
        ]
        image_embeds, text_embeds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    unit_images = unit_rows(torch.cat(image_embeds))
    # The rows that fill chunks have no gradient, but are computed again in the backward pass like all others.
    return ChunkedOutput(unit_images, unit_rows(torch.cat(text_embeds)[: _rows(texts)]) if texts else None)


def _filled(chunks: list[dict[str, Tensor]], number: int) -> list[dict[str, Tensor]]:
    """So many chunks, of which those that are missing have the first row alone."""
    filler = {name: value[:1] for name, value in chunks[0].items()} if chunks else {}
    return chunks + [filler] * (number - len(chunks))


def _rows(tensors: Mapping[str, Tensor]) -> int:
    return len(next(iter(tensors.values())))


def _split(tensors: Mapping[str, Tensor], num_chunks: int) -> list[dict[str, Tensor]]:
    """Split tensors along their rows into at most `num_chunks` parts of nearly equal size, none of them empty."""
    parts = {name: value.tensor_split(min(num_chunks, len(value))) for name, value in tensors.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _forward_chunk(tower: Tower, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    names = list(inputs)

    def embed(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tower(**dict(zip(names, tensors, strict=True)))

    if not torch.is_grad_enabled():
        return embed(*inputs.values())
    return checkpoint(embed, *inputs.values(), use_reentrant=False)
